"""``hasten prompt`` and ``hasten generate --template``: what they print equals the same steps in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, SamplingParams
from hasten.prompts.examples import read_examples
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.select_examples import select_examples

GREEDY = ("--temperature", "0", "--max-tokens", "4", "--dtype", "float32", "--kv-cache-memory", "64MiB", "--threads", "1", "--json")
EXAMPLES = [
    {"input": "import os", "output": "module"},
    {"input": "import re", "output": "module"},
    {"input": "def add(a, b):", "output": "function"},
    {"input": "def sub(a, b):", "output": "function"},
    {"input": "class Stack:", "output": "class"},
    {"input": "class Queue:", "output": "class"},
]
find = TemplateLibrary().find


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512, threads=1)


@pytest.fixture
def examples(tmp_path: Path) -> str:
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    return str(file)


def prompt_of(ran: Any) -> str:
    assert ran.code == 0, ran.err
    prompt: str = json.loads(ran.out)["prompt"]
    return prompt


# ---------------------------------------------------------------- hasten prompt


def test_ls_lists_all_templates_with_their_variables(hasten: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "ask.jinja").write_text("{{ who }}{{ what }}")
    ran = hasten("prompt", "ls", "--templates", str(tmp_path))
    lines = [line.split() for line in ran.out.splitlines()]
    assert (ran.code, ran.err, lines[0]) == (0, "", ["NAME", "LANGUAGE", "VARIABLES", "SOURCE"])
    assert ["ask", "en", "what,", "who", str(tmp_path / "ask.jinja")] in lines
    assert ["few_shot_zh", "zh", "examples,", "input", "built", "in"] in lines
    listed = json.loads(hasten("prompt", "ls", "--json").out)
    assert [entry["name"] for entry in listed] == sorted(TemplateLibrary().entries)
    assert [entry["defaults"] for entry in listed if entry["name"] == "instruction"] == [{"input": ""}]


def test_show_prints_the_text_and_with_variables_the_prompt(hasten: Callable[..., Any], examples: str, tmp_path: Path) -> None:
    template = find("qa")
    ran = hasten("prompt", "show", "qa")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (
        f"qa (en, built in): {template.description}\nvariables: question\ndefault of instruction: 'Answer the question.'\n"
        f"default of context: ''\n--- text\n{template.text}"
    )
    ran = hasten("prompt", "show", "qa", "--var", "question=a=b?")
    assert ran.out.endswith("--- prompt\nAnswer the question.\n\nQuestion: a=b?\nAnswer:\n")
    (tmp_path / "q.txt").write_text("天空?")
    shown = json.loads(hasten("prompt", "show", "qa_zh", "--var-file", f"question={tmp_path / 'q.txt'}", "--json").out)
    assert (shown["text"], shown["prompt"]) == (find("qa_zh").text, find("qa_zh").render({"question": "天空?"}))
    pool = read_examples(Path(examples))
    (expected,) = select_examples(pool, [{"input": "x"}], 3, "balanced", seed=7)
    options = ("--examples", examples, "--num-examples", "3", "--example-method", "balanced", "--example-seed", "7", "--json")
    shown = json.loads(hasten("prompt", "show", "few_shot", "--var", "input=x", *options).out)
    assert shown["prompt"] == find("few_shot").render({"input": "x", "examples": expected})


def test_the_system_text_is_shown(hasten: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("{name: polite, text: 'Hi {{ who }}', system: Be polite.}")
    ran = hasten("prompt", "show", "polite", "--templates", str(tmp_path / "t.yaml"), "--var", "who=Ann")
    assert ran.out.splitlines()[1:] == [
        "variables: who",
        *("--- system", "Be polite.", "--- text", "Hi {{ who }}"),
        *("--- prompt", "Be polite.", "", "Hi Ann"),
    ]


# ---------------------------------------------------------------- hasten generate


def test_generate_renders_and_completes(hasten: Callable[..., Any], llm: LLM) -> None:
    prompt = find("cot").render({"question": "Why?"})
    ran = hasten("generate", "demo", "--template", "cot", "--var", "question=Why?", *GREEDY)
    assert prompt_of(ran) == prompt
    (expected,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
    assert json.loads(ran.out)["outputs"][0]["text"] == expected.outputs[0].text
    streamed = hasten("generate", "--model", "demo", "--template", "cot", "--var", "question=Why?", *GREEDY[:-1])
    assert streamed.out == expected.outputs[0].text + "\n"


@pytest.mark.parametrize("method", ["random", "balanced", "similar"])
def test_generate_selects_examples(method: Any, hasten: Callable[..., Any], examples: str, llm: LLM) -> None:
    template, query = find("few_shot"), {"input": "import sys"}
    (expected,) = select_examples(read_examples(Path(examples)), [query], 3, method, embed=llm.embed)
    options = ("--examples", examples, "--num-examples", "3", "--example-method", method)
    ran = hasten("generate", "demo", "--template", "few_shot", "--var", "input=import sys", *options, *GREEDY)
    assert prompt_of(ran) == template.render({**query, "examples": expected})
    if method == "similar":
        assert expected[:2] == EXAMPLES[:2]


def test_the_number_of_examples_is_four_or_what_fits_a_budget(hasten: Callable[..., Any], examples: str, llm: LLM) -> None:
    command = ("generate", "demo", "--template", "few_shot", "--var", "input=x", "--examples", examples)
    assert prompt_of(hasten(*command, *GREEDY)).count("Output:") == 5
    prompt = prompt_of(hasten(*command, "--max-prompt-tokens", "40", *GREEDY))
    assert 1 < prompt.count("Output:") < 5 and len(llm.tokenizer.encode(prompt)) <= 40
    assert prompt_of(hasten(*command, "--max-prompt-tokens", "200", *GREEDY)).count("Output:") == 7
    assert prompt_of(hasten(*command, "--max-prompt-tokens", "200", "--num-examples", "2", *GREEDY)).count("Output:") == 3


def test_a_template_may_read_one_example(hasten: Callable[..., Any], examples: str, tmp_path: Path) -> None:
    """A check before the model is loaded must not render it without examples."""
    (tmp_path / "one.jinja").write_text("{{ examples[0].input }} | {{ input }}")
    options = ("--templates", str(tmp_path / "one.jinja"), "--examples", examples, "--var", "input=x", "--json")
    shown = json.loads(hasten("prompt", "show", "one", *options).out)
    assert shown["prompt"] in {f"{example['input']} | x" for example in EXAMPLES}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("hello", "--template", "cot", "--var", "question=x"), "so no other one can be given: got 1 more. Leave out PROMPT"),
        (("--template", "cot", "--var", "question=x", "-f", "-", "--prompt-ids", "5"), "got 2 more"),
        (("--template", "ctt"), "there is no such prompt template: got 'ctt'. Did you mean 'cot'"),
        (("--template", "cot", "--var", "qestion=x"), "got missing question, not read 'qestion'. Did you mean 'question'"),
        (("--template", "cot", "--var", "question"), "--var has the wrong form: got 'question'; allowed: NAME=VALUE"),
        (("--template", "cot", "--var", "question=x", "--var-file", "question=y"), "a variable is given twice: got 'question'"),
        (("--template", "cot", "--var-file", "question=no/such"), "no/such cannot be read"),
        (("--template", "cot", "--var", "question=x", "--examples", "FILE"), "this template shows no examples: got cot"),
        (("--template", "few_shot", "--var", "input=x"), "got missing examples"),
        (("--template", "few_shot", "--var", "input=x", "--var", "examples=x", "--examples", "FILE"), "a variable is given twice"),
        (("--template", "few_shot", "--var", "input=x", "--var", "examples=x"), "no attribute 'input'"),
        (("--template", "few_shot", "--examples", "FILE"), "got missing input"),
        (("--template", "few_shot", "--var", "input=x", "--examples", "no/such"), "no/such cannot be read"),
        (("--template", "few_shot", "--var", "input=x", "--examples", "FILE", "--num-examples", "7"), "got 7; allowed: 1 to 6"),
        (
            ("--template", "few_shot", "--var", "input=x", "--examples", "FILE", "--max-prompt-tokens", "2"),
            "the prompt exceeds its token budget",
        ),
        (("--template", "cot", "--var", "question=x", "--example-method", "simlar"), "Did you mean 'similar'"),
        (("--template", "cot", "--var", "question=x", "--num-examples", "2"), "num_examples=2 (allowed: only with examples)"),
        (("hello", "--var", "question=x"), "var=('question=x',) (allowed: only with template)"),
        (("--template", "cot", "--templates", "no/such"), "no/such"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], expected: str, hasten: Callable[..., Any], examples: str) -> None:
    ran = hasten("generate", "demo", *(examples if argument == "FILE" else argument for argument in arguments), *GREEDY)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ") and expected in ran.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("show", "ctt"), "Did you mean 'cot'"),
        (("show",), "NAME"),
        (("shw", "cot"), "unknown command 'shw'. Did you mean 'show'"),
        (("show", "few_shot", "--var", "input=x", "--examples", "FILE", "--example-method", "similar"), "need a model"),
        (("ls", "--templates", "no/such"), "no/such"),
    ],
)
def test_a_mistake_about_prompts_is_one_sentence(
    arguments: tuple[str, ...], expected: str, hasten: Callable[..., Any], examples: str
) -> None:
    ran = hasten("prompt", *(examples if argument == "FILE" else argument for argument in arguments))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ") and expected in ran.err
