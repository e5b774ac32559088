"""Chat with tools and thoughts through the engine, whose model's text is replaced by a written answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, AsyncLLM, Delta, InvalidRequest, SamplingParams, ToolCall
from hasten.cli.main import run
from hasten.core.engine_options import EngineOptions
from hasten.core.output import CompletionOutput
from hasten.entrypoints.chat_answers import ChatAnswers
from hasten.entrypoints.model_report import report_model
from hasten.text.tokenizer import TextTokenizer

DEMO = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "model"
OPTIONS = {"max_model_len": 512, "kv_cache_memory": "8MiB", "threads": 1, "speculative_method": "off"}
MESSAGES = [{"role": "user", "content": "How is the weather?"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
ANSWER = f"<think>\nLook it up.\n</think>\n\nOne moment.\n{CALL}"


class WrittenAnswer:
    """A detokenizer that gives a written text, three characters per token, whatever the tokens are."""

    def __init__(self, text: str) -> None:
        self._pieces = [text[i : i + 3] for i in range(0, len(text), 3)]

    def push(self, token_id: int) -> str:
        return self._pieces.pop(0) if self._pieces else ""

    def flush(self) -> str:
        return ""


@pytest.fixture(scope="module")
def thinking_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a template that has thoughts, which the prompt may begin."""
    folder = tmp_path_factory.mktemp("thinking")
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    template = (DEMO / "chat_template.jinja").read_text()
    marker = "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    assert marker in template
    text = template.replace(marker, marker + "{{ '<think>\\n' if think }}{# </think> #}")
    (folder / "chat_template.jinja").write_text(text)
    return folder


@pytest.fixture(scope="module")
def llm(thinking_demo: Path) -> Iterator[LLM]:
    with LLM(str(thinking_demo), **OPTIONS) as opened:
        yield opened


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of the next answers, and how the special tokens were to be treated."""
    texts: list[str] = []

    def detokenizer(self: TextTokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> WrittenAnswer:
        return WrittenAnswer(texts[0])

    monkeypatch.setattr(TextTokenizer, "detokenizer", detokenizer)
    return texts


def settings(text: str, **changes: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=len(text) // 3 + 1, ignore_eos=True, **changes)


def without_ids(completion: CompletionOutput) -> CompletionOutput:
    return dataclasses.replace(completion, tool_calls=tuple(dataclasses.replace(call, id="") for call in completion.tool_calls))


def test_chat_gives_content_thought_and_calls_apart(llm: LLM, answers: list[str]) -> None:
    answers.append(ANSWER)
    (output,) = llm.chat(MESSAGES, settings(ANSWER), tools=[WEATHER], use_tqdm=False)
    (completion,) = output.outputs
    (call,) = completion.tool_calls
    assert (completion.text, completion.reasoning) == ("One moment.", "Look it up.")
    assert (call.name, json.loads(call.arguments), completion.warnings) == ("weather", {"city": "Zürich"}, ())
    assert len(completion.token_ids) == len(ANSWER) // 3 + 1
    text = llm.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
    assert '{"type": "function", "function": {"name": "weather"' in text


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_chat(llm: LLM, answers: list[str], n: int) -> None:
    answers.append(ANSWER)
    params = settings(ANSWER, n=n) if n == 1 else settings(ANSWER).replace(n=n, temperature=1, seed=3)
    (output,) = llm.chat(MESSAGES, params, tools=[WEATHER], use_tqdm=False)
    deltas = list(llm.stream_chat(MESSAGES, params, tools=[WEATHER]))
    final = deltas[-1].output
    assert final is not None
    assert list(map(without_ids, final.outputs)) == list(map(without_ids, output.outputs))
    for completion in final.outputs:
        check_stream([delta for delta in deltas if delta.index == completion.index], completion)


def check_stream(deltas: list[Delta], completion: CompletionOutput) -> None:
    assert "".join(delta.text for delta in deltas) == completion.text
    assert "".join(delta.reasoning for delta in deltas) == completion.reasoning
    fragments = [call for delta in deltas for call in delta.tool_calls]
    assert len(fragments) > 3
    call = ToolCall(fragments[0].id or "", fragments[0].name or "", "".join(each.arguments for each in fragments))
    assert (call,) == completion.tool_calls


def test_async_streams_equal_those_of_llm(thinking_demo: Path, llm: LLM, answers: list[str]) -> None:
    answers.append(ANSWER)
    expected = llm.chat(MESSAGES, settings(ANSWER), tools=[WEATHER], use_tqdm=False)[0].outputs[0]

    async def session() -> list[Delta]:
        async with AsyncLLM(str(thinking_demo), **OPTIONS) as opened:
            return [delta async for delta in opened.stream_chat(MESSAGES, settings(ANSWER), tools=[WEATHER])]

    deltas = asyncio.run(asyncio.wait_for(session(), 60))
    assert deltas[-1].output is not None
    completion = deltas[-1].output.outputs[0]
    assert without_ids(completion) == without_ids(expected)
    check_stream(deltas, completion)


def test_a_thought_that_the_prompt_begins(llm: LLM, answers: list[str]) -> None:
    answers.append(text := "Hm.\n</think>\n\nFine.")
    asked, plain = (llm.chat(MESSAGES, settings(text), use_tqdm=False, think=think)[0].outputs[0] for think in (True, False))
    assert (asked.text, asked.reasoning) == ("Fine.", "Hm.")
    assert (plain.text, plain.reasoning) == (text, None)
    answers[0] = "Hm, let me"
    cut = llm.chat(MESSAGES, settings(answers[0]), use_tqdm=False, think=True)[0].outputs[0]
    assert (cut.text, cut.reasoning) == ("", "Hm, let me")


def test_without_tools_or_with_choice_none_calls_stay_in_the_text(llm: LLM, answers: list[str]) -> None:
    answers.append(CALL)
    plain = llm.chat(MESSAGES, settings(CALL), use_tqdm=False)[0]
    none = llm.chat(MESSAGES, settings(CALL), tools=[WEATHER], tool_choice="none", use_tqdm=False)[0]
    assert plain.outputs[0].text == none.outputs[0].text == CALL and plain.outputs[0].tool_calls == ()
    assert plain.prompt_token_ids == none.prompt_token_ids


def test_malformed_calls_are_in_the_text(llm: LLM, answers: list[str]) -> None:
    answers.append(text := CALL[:40])
    completion = llm.chat(MESSAGES, settings(text), tools=[WEATHER], use_tqdm=False)[0].outputs[0]
    assert (completion.text, completion.tool_calls) == (text, ())
    assert "left in the text" in completion.warnings[0]


def test_a_conversation_goes_on_with_the_results(llm: LLM, answers: list[str]) -> None:
    answers.append(CALL)
    first = llm.chat(MESSAGES, settings(CALL), tools=[WEATHER], use_tqdm=False)[0].outputs[0]
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
    messages = [*MESSAGES, {"role": "assistant", "content": first.text, "tool_calls": first.tool_calls}, result]
    output = llm.chat(messages, settings(CALL), tools=[WEATHER], use_tqdm=False)[0]
    text = llm.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>' in text
    assert "<tool_response>sunny</tool_response>" in text


def test_lists_of_conversations_and_settings(llm: LLM, answers: list[str]) -> None:
    answers.append(CALL)
    outputs = llm.chat([MESSAGES, MESSAGES], [settings(CALL), settings(CALL[:9])], tools=[WEATHER], use_tqdm=False)
    assert [len(output.outputs[0].tool_calls) for output in outputs] == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": [WEATHER, WEATHER]}, "two tools have the same name"),
        ({"tools": [{"name": "f"}]}, r"tools\[0\] is not a definition"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice has an unknown value: got 'any'; allowed: auto, none"),
        ({"tools": "weather"}, "tools are not a list"),
    ],
)
def test_wrong_tools_are_refused_before_anything_runs(llm: LLM, options: dict[str, Any], message: str) -> None:
    for ask in (llm.chat, llm.stream_chat):
        with pytest.raises(InvalidRequest, match=message):
            ask(MESSAGES, **options)


def test_the_grammar_of_a_call_of_chat(llm: LLM) -> None:
    processor = llm._loaded.input_processor
    assert processor.tokenizer is not None
    grammar = ChatAnswers.open(processor, [WEATHER], "auto").grammar("required")
    opener = processor.tokenizer.special_token_ids["<tool_call>"]
    assert f'<[{opener}]> "\\n{{\\"name\\": \\"weather\\", \\"arguments\\": "' in grammar
    with pytest.raises(InvalidRequest, match="tool_choice names none of the tools: got wether"):
        ChatAnswers.open(processor, [WEATHER], "auto").grammar("wether")
    with pytest.raises(InvalidRequest, match="there are no tools"):
        ChatAnswers.open(processor, None, "auto").grammar("required")


def test_functions_are_tools(llm: LLM, answers: list[str]) -> None:
    def weather(city: str) -> str:
        """Return the weather.

        Args:
            city: The city
        """
        raise NotImplementedError

    answers.append(CALL)
    assert llm.chat(MESSAGES, settings(CALL), tools=[weather], use_tqdm=False)[0].outputs[0].tool_calls[0].name == "weather"


def test_special_tokens_that_are_markers_stay_in_the_text(thinking_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the markers among the special tokens, the detokenizer must not skip them."""
    seen: list[bool] = []

    def detokenizer(self: TextTokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> WrittenAnswer:
        seen.append(skip_special_tokens)
        return WrittenAnswer(CALL)

    monkeypatch.setattr(TextTokenizer, "detokenizer", detokenizer)
    monkeypatch.setattr(TextTokenizer, "special_token_ids", {"<tool_call>": 1})
    with LLM(str(thinking_demo), **OPTIONS) as opened:
        opened.chat(MESSAGES, settings(CALL), tools=[WEATHER], use_tqdm=False)
        opened.chat(MESSAGES, settings(CALL), use_tqdm=False)
    assert seen == [False, True]


def test_doctor_names_the_parsers(thinking_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_model(str(thinking_demo), EngineOptions(threads=1))
    assert report["tool_call_parser"] == {"name": "hermes", "reason": "the chat template has <tool_call>"}
    assert report["reasoning_parser"]["name"] == "qwen3"
    assert run(["doctor", "demo"]) == 0
    lines = capsys.readouterr().out
    assert "tools         parser hermes: the chat template has <tool_call>" in lines
    assert "thoughts      no parser: the chat template has no markers of thoughts" in lines
