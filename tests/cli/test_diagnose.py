"""``hasten diagnose``: texts and outputs in, findings and advice out; ``--fix`` runs again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import LLM, SamplingParams
from hasten.cli.diagnosed_outputs import read_outputs
from hasten.core.errors import HastenError

ENGINE = ("--dtype", "float32", "--kv-cache-memory", "64MiB", "--threads", "1")
LOOP = "and so on and on " * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "output.txt"
    file.write_text(LOOP, encoding="utf-8")
    return file


def test_a_text_is_diagnosed_with_the_settings_that_are_given(hasten: Callable[..., Any], text: Path) -> None:
    ran = hasten("diagnose", str(text), "--temperature", "0")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (
        "repetition from character 0\n  100% of the output is a loop of 'and so on and on'.\n"
        "  next: set temperature to 0.8 (now 0.0)\n"
    )
    assert "next: set repetition_penalty to 1.1 (now 1.0)" in hasten("diagnose", str(text)).out
    ran = hasten("diagnose", "-", "--temperature", "0", "--language", "zh", stdin=LOOP)
    assert ran.out.splitlines() == [
        "重复（从第 0 个字符起）",
        "  输出的 100% 是“and so on and on”的循环。",
        "  下一步：把 temperature 设为 0.8（现在是 0.0）。",
    ]


def test_a_good_text_has_no_fault(hasten: Callable[..., Any]) -> None:
    assert hasten("diagnose", "-", stdin="The river rose.\n").out == "no fault found\n"
    ran = hasten("diagnose", "-", "--json", stdin="The river rose.\n")
    assert json.loads(ran.out) == {"line": 1, "index": 0, "findings": []}


def test_what_generate_prints_pipes_straight_in_and_fix_shows_both(hasten: Callable[..., Any]) -> None:
    greedy = ("--temperature", "0", "--max-tokens", "48", "--json")
    printed = hasten("generate", "demo", "def main(", "import os", *greedy, *ENGINE).out
    ran = hasten("diagnose", "-", "--fix", "demo", "--json", *ENGINE, stdin=printed)
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, [row["line"] for row in rows]) == (0, [1, 2])
    llm = LLM("demo", dtype="float32", max_model_len=512, threads=1)
    for row, prompt in zip(rows, ("def main(", "import os"), strict=True):
        finding = row["findings"][0]
        assert (finding["fault"], finding["advice"]["parameter"], finding["advice"]["value"]) == ("repetition", "temperature", 0.8)
        assert row["fix"]["value"] < finding["value"]
        params = SamplingParams.from_dict(row["fix"]["params"])
        assert (params.temperature, params.max_tokens) == (0.8, 48)
        assert row["fix"]["text"] == llm.generate(prompt, params)[0].outputs[0].text
    shown = hasten("diagnose", "-", "--fix", "demo", *ENGINE, stdin=printed).out
    assert shown.count("before (") == shown.count("after (") == 2


def test_a_fix_needs_the_prompt(hasten: Callable[..., Any], text: Path, model: str) -> None:
    ran = hasten("diagnose", str(text), "--fix", model, *ENGINE)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "  not run again: the prompt is unknown")
    ran = hasten("diagnose", str(text), "--prompt", "w1 w2", "--max-tokens", "4", "--fix", model, *ENGINE)
    assert "  before (1.00): " in ran.out and "  after (" in ran.out


def test_a_prompt_that_the_model_cannot_take_does_not_stop_the_others(hasten: Callable[..., Any], model: str) -> None:
    rows = [{"text": LOOP, "prompt": prompt, "params": {"max_tokens": 4}} for prompt in ("w1 " * 900, "w1 w2")]
    stdin = "\n".join(map(json.dumps, rows))
    ran = hasten("diagnose", "-", "--fix", model, *ENGINE, "--max-model-len", "64", "--json", stdin=stdin)
    first, second = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0 and "context" in first["fix"]["error"] and "value" in second["fix"]
    ran = hasten("diagnose", "-", "--fix", model, *ENGINE, "--max-model-len", "64", stdin=stdin)
    assert "  not run again: " in ran.out and "  after (" in ran.out


def test_lines_with_all_that_is_known(hasten: Callable[..., Any]) -> None:
    lines = [
        {"text": "It rained and", "finish_reason": "length", "params": {"max_tokens": 4}},
        {"text": "", "prompt": "Say it.", "finish_reason": "stop"},
        {"text": "good " * 3, "token_ids": list(range(20)), "logprobs": [-9.0] * 20},
        {"outputs": [{"text": "Fine."}, {"text": LOOP}], "params": None},
    ]
    ran = hasten("diagnose", "-", "--json", stdin="\n".join(json.dumps(line) for line in lines))
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [(row["line"], row["index"], [finding["fault"] for finding in row["findings"]]) for row in found] == [
        (1, 0, ["truncation"]),
        (2, 0, ["too_short"]),
        (3, 0, ["degenerate"]),
        (4, 0, []),
        (4, 1, ["repetition"]),
    ]
    assert found[0]["findings"][0]["advice"]["value"] == 128
    assert "line 4, output 2: repetition" in hasten("diagnose", "-", stdin="\n".join(json.dumps(line) for line in lines)).out


def test_options_override_the_settings_of_a_line(hasten: Callable[..., Any]) -> None:
    line = json.dumps({"text": LOOP, "params": {"temperature": 0}})
    assert "next: set temperature to 0.8" in hasten("diagnose", "-", stdin=line).out
    assert "next: set repetition_penalty to 1.1" in hasten("diagnose", "-", "--temperature", "0.9", stdin=line).out


def test_the_order_of_prompts_is_judged_over_all_lines(hasten: Callable[..., Any]) -> None:
    rules = "Answer in the language of the customer and name the number of the order. " * 3
    lines = "\n".join(json.dumps({"prompt": f"{name} asks: {rules}"}) for name in ("Ana", "Bo", "Cem"))
    ran = hasten("diagnose", "-", stdin=lines)
    assert ran.code == 0 and ran.out.startswith("prompts: prompt order\n")
    assert "next: put the shared part of the prompts first and what varies last" in ran.out
    ids = "\n".join(json.dumps({"text": "Good.", "prompt_token_ids": [n, *range(99)]}) for n in (500, 501, 502))
    assert json.loads(hasten("diagnose", "-", "--json", stdin=ids).out.splitlines()[-1])["findings"][0]["fault"] == "prompt_order"


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"text": "a"}\n{', "line 2 holds no output: this is not JSON"),
        ('{"text": "a"}\n[1]', "line 2 holds no output: a key is missing"),
        ('{"text": 5}', "the text is no text: got 5"),
        ('{"text": "\\ud800"}', "the text is no text"),
        ('{"text": "a", "prompt": 5}', "the prompt is no text"),
        ('{"text": "a", "params": {"temprature": 1}}', "Did you mean 'temperature'"),
        ('{"text": "a", "params": [1]}', "sampling settings are not named values"),
        ('{"text": "a", "finish_reason": "tired"}', "unknown finish reason: got 'tired'"),
        ('{"text": "a", "token_ids": [1, -1]}', "token ids are no list of whole numbers"),
        ('{"text": "a", "logprobs": [0.5]}', "a log-probability is no number: got 0.5"),
        ('{"text": "a", "logprobs": [NaN]}', "a log-probability is no number"),
        ('{"text": "a", "logprobs": [{"logprob": -1, "top": [[1]]}]}', "the top tokens are no list of pairs"),
        ('{"text": "a", "seed": "x"}', "seed='x'"),
        ('{"outputs": {"text": "a"}}', "outputs is no list of mappings"),
        ('{"outputs": []}', "there is no output to diagnose"),
    ],
)
def test_a_wrong_line_gives_one_clear_error(hasten: Callable[..., Any], content: str, message: str) -> None:
    ran = hasten("diagnose", "-", stdin=content)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert message in ran.err


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "top", "logprob", "token_id"]), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["text", "prompt", "params", "outputs", "token_ids", "prompt_token_ids", "logprobs", "finish_reason", "stop_reason", "seed"]
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_line_is_read_or_gives_a_clear_error(content: dict[str, Any]) -> None:
    message = ""
    try:
        read_outputs(json.dumps(content), prompt=None, finish_reason=None, settings={}, is_jsonl=True)
    except HastenError as error:
        message = str(error)
    assert message == "" or message.isprintable()
