"""Thoughts within their budget and calls that a tool choice demands, from the demo model, which knows neither."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.exhaustive import repeats

from hasten import LLM, InvalidRequest, SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.entrypoints.chat_answers import ChatAnswers

DEMO = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "model"
OPTIONS: dict[str, Any] = {"max_model_len": 512, "kv_cache_memory": "16MiB", "threads": 1, "reasoning_parser": "qwen3"}
MESSAGES = [{"role": "user", "content": "Write a function."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
# Syntaxes that are not JSON have no grammar of ranges and lengths.
ARGUMENTS = {
    "type": "object",
    "properties": {"name": {"enum": ["small", "large"]}, "size": {"type": "integer"}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": ARGUMENTS}} for name in ("open_box", "close_box")]
THINK = 4  # the token of a thought's start
BUDGETS = (0, 1, 16, 64)
SEEDS = range(repeats("thoughts"))


@pytest.fixture(scope="module")
def thinking_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a template that begins a thought if asked."""
    folder = tmp_path_factory.mktemp("thinking")
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    template = (DEMO / "chat_template.jinja").read_text()
    marker = "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    (folder / "chat_template.jinja").write_text(template.replace(marker, marker + "{{ '<think>\\n' if think }}{# </think> #}"))
    return folder


@pytest.fixture(scope="module")
def llm(thinking_demo: Path) -> Iterator[LLM]:
    with LLM(str(thinking_demo), **OPTIONS) as opened:
        yield opened


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_thought_ends_within_its_budget_and_the_answer_follows(llm: LLM, budget: int) -> None:
    form = StructuredOutputs(json=SCHEMA, disable_any_whitespace=True)
    params = [SamplingParams(seed=seed, max_tokens=200, thinking_token_budget=budget, structured_outputs=form) for seed in SEEDS]
    outputs = llm.chat([MESSAGES] * len(params), params, think=True, use_tqdm=False)
    end = llm.tokenizer.encode_fragment("</think>")
    for output in outputs:
        (completion,) = output.outputs
        tokens = list(completion.token_ids)
        ends = [i for i in range(len(tokens)) if tokens[i : i + len(end)] == end]
        assert len(ends) == 1, "it is closed once"
        assert ends[0] <= budget
        jsonschema.validate(json.loads(completion.text), SCHEMA)
        assert completion.is_complete
        assert completion.reasoning is not None


@pytest.mark.parametrize(
    ("begun", "has_thought"), [("<think>\nHm, let", True), ("<think>Hm.</think>\n", False), ("Fine", False), ("", False)]
)
def test_an_answer_that_the_prompt_has_begun(llm: LLM, begun: str, has_thought: bool) -> None:
    """A mark in the question is none, and the form begins after the thought, wherever the prompt cuts it."""
    messages = [{"role": "user", "content": "What does <think> mean?"}, {"role": "assistant", "content": begun}]
    given = {"continue_final_message": True} if begun else {}
    form = StructuredOutputs(choice=["yes", "no"])
    params = SamplingParams(seed=3, max_tokens=60, thinking_token_budget=6, structured_outputs=form, logit_bias={THINK: -100})
    (output,) = llm.chat(messages if begun else messages[:1], params, use_tqdm=False, **given)
    (completion,) = output.outputs
    assert completion.is_complete and completion.text in ("yes", "no")
    assert (completion.reasoning is not None) == has_thought
    (streamed,) = [delta.output for delta in llm.stream_chat(messages if begun else messages[:1], params, **given) if delta.output]
    assert streamed.outputs == output.outputs


def test_an_answer_follows_a_thought_without_a_grammar(llm: LLM) -> None:
    params = SamplingParams(seed=3, max_tokens=60, thinking_token_budget=10)
    (output,) = llm.chat(MESSAGES, params, think=True, use_tqdm=False)
    assert "</think>" not in output.outputs[0].text
    assert output.outputs[0].is_complete is None
    assert 0 < len(llm.tokenizer.encode(output.outputs[0].reasoning or "")) <= 11


def test_drafts_and_batches_change_nothing(thinking_demo: Path, llm: LLM) -> None:
    params = [SamplingParams(seed=seed, max_tokens=120, thinking_token_budget=seed % 20) for seed in range(8)]
    together = llm.chat([MESSAGES] * 8, params, think=True, use_tqdm=False)
    with LLM(str(thinking_demo), **OPTIONS, speculative_method="off") as plain:
        alone = [plain.chat(MESSAGES, each, think=True, use_tqdm=False)[0] for each in params]
    assert [output.outputs for output in together] == [output.outputs for output in alone]


@pytest.mark.parametrize("family", ["hermes", "llama3_json", "qwen3_coder", "mistral", "deepseek_v3", "pythonic"])
def test_a_demanded_call_is_made(thinking_demo: Path, family: str) -> None:
    named = {"type": "function", "function": {"name": "close_box"}}
    with LLM(str(thinking_demo), **OPTIONS, tool_call_parser=family) as model:
        for choice in ("required", named):
            for seed in range(3):
                params = SamplingParams(seed=seed, max_tokens=240, temperature=0.7)
                (output,) = model.chat(MESSAGES, params, tools=TOOLS, tool_choice=choice, use_tqdm=False)
                (completion,) = output.outputs
                if not completion.is_complete:
                    assert completion.finish_reason == "length"
                    continue
                assert completion.tool_calls
                assert not completion.warnings
                for call in completion.tool_calls:
                    assert call.name in (["close_box"] if choice is named else ["open_box", "close_box"])
                    jsonschema.validate(json.loads(call.arguments), ARGUMENTS)


def test_bad_choices_are_one_error(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="there are no tools"):
        llm.chat(MESSAGES, tool_choice="required", use_tqdm=False)
    with pytest.raises(InvalidRequest, match="unknown value"):
        llm.chat(MESSAGES, tools=TOOLS, tool_choice="sometimes", use_tqdm=False)
    with pytest.raises(InvalidRequest, match="none of the tools"):
        llm.chat(MESSAGES, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "shut"}}, use_tqdm=False)
    large = {"type": "object", "properties": {"a": {"type": "string", "description": "d" * 40_000}}}
    tools = [{"type": "function", "function": {"name": name, "parameters": large}} for name in ("open_box", "close_box")]
    with pytest.raises(InvalidRequest, match="the tools are too large for a tool_choice that demands a call: got a grammar of 8"):
        ChatAnswers.open(llm._loaded.input_processor, tools, "required").params(None)  # a prompt of them would be too long here
    form = SamplingParams(structured_outputs=StructuredOutputs(json_object=True))
    with pytest.raises(InvalidRequest, match="does not go with"):
        llm.chat(MESSAGES, form, tools=TOOLS, tool_choice="required", use_tqdm=False)


def test_a_model_without_thoughts_has_no_budget_for_them() -> None:
    with (
        LLM("demo", max_model_len=128, kv_cache_memory="8MiB", threads=1) as model,
        pytest.raises(InvalidRequest, match="no thoughts"),
    ):
        model.generate("x", SamplingParams(thinking_token_budget=3), use_tqdm=False)
