"""Chat completions over HTTP against those of ``LLM`` in the same process, and answers whose text is written by the test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from tests.serving.openai.answers import joined_messages, post, refusal, stream

from hasten import LLM, SamplingParams
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.text.tokenizer import TextTokenizer

MESSAGES = [{"role": "user", "content": "Write a function."}]
GREEDY = {"temperature": 0, "max_tokens": 6}
SAMPLED = {"temperature": 1.2, "top_p": 1.0, "seed": 7, "max_tokens": 12}
ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": ARGUMENTS}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": ARGUMENTS}}
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>',
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
)
BROKEN = '<tool_call>\n{"name": "weather", "arguments": {"city": Zürich}}\n</tool_call>'


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", threads=1, kv_cache_memory="16MiB", max_model_len=512) as opened:
        yield opened


class WrittenAnswer:
    """A detokenizer that gives a written text, three characters per token, whatever the tokens are."""

    def __init__(self, text: str) -> None:
        self._pieces = [text[i : i + 3] for i in range(0, len(text), 3)]

    def push(self, token_id: int) -> str:
        return self._pieces.pop(0) if self._pieces else ""

    def flush(self) -> str:
        return ""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of the next answers."""
    texts: list[str] = []

    def detokenizer(self: TextTokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> WrittenAnswer:
        return WrittenAnswer(texts[0])

    monkeypatch.setattr(TextTokenizer, "detokenizer", detokenizer)
    return texts


def chat(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """Return the only choice of an answer."""
    (choice,) = post(client, "chat/completions", **{"messages": MESSAGES, **body})["choices"]
    return dict(choice)


def joined(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """Return what the stream of the same request adds up to."""
    return joined_messages(stream(client, "chat/completions", **{"messages": MESSAGES, **body}))[0]


def for_text(text: str) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": len(text) // 3 + 1, "ignore_eos": True, "cache_salt": str(hash(text))}


@pytest.mark.parametrize("settings", [SAMPLED, GREEDY, SAMPLED | {"n": 3}])
def test_answers_equal_those_in_process_streamed_or_not(client: httpx.Client, llm: LLM, settings: dict[str, Any]) -> None:
    (expected,) = llm.chat(MESSAGES, llm.default_sampling_params().replace(**settings), use_tqdm=False)
    answer = post(client, "chat/completions", messages=MESSAGES, **settings)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [each.text for each in expected.outputs]
    assert [choice["finish_reason"] for choice in answer["choices"]] == [str(each.finish_reason) for each in expected.outputs]
    assert answer["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)
    assert answer["usage"]["completion_tokens"] == sum(len(each.token_ids) for each in expected.outputs)
    streamed = joined_messages(stream(client, "chat/completions", messages=MESSAGES, **settings))
    for choice in answer["choices"]:
        found = streamed[choice["index"]]
        assert (found["role"], found["content"], found["finish_reason"]) == (
            "assistant",
            choice["message"]["content"],
            choice["finish_reason"],
        )


def test_the_role_comes_with_the_first_token(client: httpx.Client) -> None:
    chunks = stream(client, "chat/completions", messages=MESSAGES, return_token_ids=True, **GREEDY)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and chunks[0]["choices"][0]["token_ids"]
    assert chunks[0]["prompt_token_ids"] and all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    assert sum("role" in chunk["choices"][0]["delta"] for chunk in chunks) == 1


def test_logprobs(client: httpx.Client, llm: LLM) -> None:
    (expected,) = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=6, logprobs=2), use_tqdm=False)
    tokens = expected.outputs[0].logprobs
    assert tokens is not None
    choice = chat(client, logprobs=True, top_logprobs=2, **GREEDY)
    content = choice["logprobs"]["content"]
    assert [each["logprob"] for each in content] == [token.logprob for token in tokens]
    assert [[top["logprob"] for top in each["top_logprobs"]] for each in content] == [
        [value for _, value in token.top] for token in tokens
    ]
    assert b"".join(bytes(each["bytes"]) for each in content).decode() == choice["message"]["content"]
    chunks = stream(client, "chat/completions", messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [each for part in parts if part for each in part["content"]] == content
    assert chat(client, logprobs=True, **GREEDY)["logprobs"]["content"][0]["top_logprobs"] == []
    assert chat(client, top_logprobs=0, **GREEDY)["logprobs"] is None
    assert refusal(client, "chat/completions", messages=MESSAGES, top_logprobs=2)["param"] == "top_logprobs"


def test_the_newer_limit_of_tokens_counts(client: httpx.Client) -> None:
    choice = chat(client, temperature=0, max_tokens=9, max_completion_tokens=3, ignore_eos=True, return_token_ids=True)
    assert len(choice["token_ids"]) == 3
    error = refusal(client, "chat/completions", messages=MESSAGES, max_tokens=9, max_completion_tokens=600)
    assert (error["param"], error["code"]) == ("max_completion_tokens", "context_length_exceeded")
    assert refusal(client, "chat/completions", messages=MESSAGES, max_completion_tokens=0)["param"] == "max_completion_tokens"


@pytest.mark.parametrize("length", [600, 40_000])
def test_conversations_that_are_too_long(client: httpx.Client, length: int) -> None:
    for changes in ({}, {"max_tokens": 1}, {"stream": True}):
        error = refusal(client, "chat/completions", messages=[{"role": "user", "content": "a b " * length}], **changes)
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded") and "up to" in error["message"]


def test_prompts_can_be_seen(client: httpx.Client, llm: LLM) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    answer = post(client, "chat/completions", messages=messages, return_prompt_text=True, return_token_ids=True, **GREEDY)
    plain = [*messages[:2], {"role": "user", "content": "c"}]
    assert answer["prompt_text"] == llm.tokenizer.render_chat(plain)
    assert answer["prompt_token_ids"] == llm.tokenizer.apply_chat_template(plain)
    scored = post(client, "chat/completions", messages=messages, prompt_logprobs=0, **GREEDY)["prompt_logprobs"]
    assert scored[0] is None and [list(each) for each in scored[1:]] == [[str(each)] for each in answer["prompt_token_ids"][1:]]


def test_a_message_that_goes_on(client: httpx.Client) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "def add("}]
    asked = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True, "return_prompt_text": True}
    assert post(client, "chat/completions", **asked, **GREEDY)["prompt_text"].endswith("assistant\ndef add(")
    plain = post(client, "chat/completions", messages=MESSAGES, add_generation_prompt=False, return_prompt_text=True, **GREEDY)
    assert plain["prompt_text"].endswith("Write a function.<|im_end|>\n")
    refusal(client, "chat/completions", messages=messages, add_generation_prompt=True, continue_final_message=True)


def test_a_developer_is_the_system_where_the_template_knows_none(client: httpx.Client) -> None:
    texts = [
        post(
            client,
            "chat/completions",
            messages=[{"role": role, "content": "Be brief."}, *MESSAGES],
            return_prompt_text=True,
            **GREEDY,
        )
        for role in ("system", "developer")
    ]
    assert texts[0]["prompt_text"] == texts[1]["prompt_text"] and "Be brief." in texts[0]["prompt_text"]


def test_forms_of_answers(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    formats = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}},
        {"structured_outputs": {"json": schema, "disable_any_whitespace": True}},
        {"structured_outputs": {"json": json.dumps(schema)}},
    ]
    for form in formats:
        for found in (chat(client, temperature=0, **form)["message"], joined(client, temperature=0, **form)):
            assert isinstance(json.loads(found["content"])["ok"], bool)
    assert chat(client, temperature=0, structured_outputs={"choice": ["red", "blue"]})["message"]["content"] in ("red", "blue")
    digits = chat(client, temperature=0, structured_outputs={"regex": "[0-9]{3}"})["message"]["content"]
    assert len(digits) == 3 and digits.isdecimal()
    assert chat(client, temperature=0, response_format={"type": "text"}, max_tokens=6) == chat(client, **GREEDY)
    seeded = {"temperature": 1, "seed": 3, "max_tokens": 60}
    assert chat(client, response_format={"type": "json_object"}, **seeded)["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structural_tag"),
        ({"guided_json": {}}, "guided_json"),
        ({"guided_whitespace_pattern": "a"}, "guided_whitespace_pattern"),
    ],
)
def test_forms_that_are_refused(client: httpx.Client, form: dict[str, Any], param: str) -> None:
    error = refusal(client, "chat/completions", messages=MESSAGES, **form)
    assert error["param"] == param
    assert "structured_outputs" in error["message"] or not param.startswith("guided")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_demanded_call_is_made(client: httpx.Client, choice: Any) -> None:
    asked = {"tools": [WEATHER, CLOCK], "tool_choice": choice, "temperature": 0, "max_tokens": 60, "parallel_tool_calls": False}
    found, streamed = chat(client, **asked), joined(client, **asked)
    (call,) = found["message"]["tool_calls"]
    assert found["finish_reason"] == streamed["finish_reason"] == "tool_calls"
    assert choice == "required" or found["message"]["content"] is None  # several calls may be cut by the limit of tokens
    assert call["type"] == "function" and call["function"]["name"] in ("weather", "clock")[choice != "required" :]
    assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")
    (part,) = streamed["calls"].values()
    assert part["id"] != call["id"] and {"name": part["name"], "arguments": part["arguments"]} == call["function"]


def test_strict_tools_hold_calls_to_their_schemas(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = []

    def stream_chat(self: AsyncLLM, messages: Any, params: SamplingParams, **options: Any) -> Any:
        forms.append(params.structured_outputs)
        return ask(self, messages, params, **options)

    ask = AsyncLLM.stream_chat
    monkeypatch.setattr(AsyncLLM, "stream_chat", stream_chat)
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    for tools in ([strict, CLOCK], [WEATHER, CLOCK]):
        assert chat(client, tools=tools, **GREEDY) == chat(client, tools=tools, **GREEDY)
    joined(client, tools=[strict], tool_choice="auto", **GREEDY)
    chat(client, tools=[strict], tool_choice="none", **GREEDY)
    chat(client, tools=[strict], response_format={"type": "json_object"}, **GREEDY)
    assert [form is not None and form.grammar is not None and "Oslo" in form.grammar for form in forms] == [
        *(True, True, False, False, True, False, False)
    ]
    assert forms[-1] is not None and forms[-1].json_object


def test_calls_thoughts_and_text_are_told_apart(thinking_client: httpx.Client, written: list[str]) -> None:
    text = f"<think>\nLook it up.\n</think>\n\nOne moment.\n{CALLS[0]}\n{CALLS[1]}"
    written.append(text)
    asked = {"tools": [WEATHER, CLOCK], **for_text(text)}
    found, streamed = chat(thinking_client, **asked), joined(thinking_client, **asked)
    message = found["message"]
    assert (message["content"], message["reasoning"], found["finish_reason"]) == ("One moment.", "Look it up.", "length")
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    assert calls == [("weather", {"city": "Zürich"}), ("clock", {})]
    assert {name: streamed[name] for name in ("role", "content", "reasoning", "finish_reason")} == {
        "role": "assistant",
        "content": "One moment.",
        "reasoning": "Look it up.",
        "finish_reason": "length",
    }
    parts = [streamed["calls"][index] for index in (0, 1)]
    assert [{"name": part["name"], "arguments": part["arguments"]} for part in parts] == [
        call["function"] for call in message["tool_calls"]
    ]
    one = chat(thinking_client, **asked, parallel_tool_calls=False, include_reasoning=False)
    assert one["message"]["tool_calls"][0]["function"] == message["tool_calls"][0]["function"]
    assert len(one["message"]["tool_calls"]) == 1 and "reasoning" not in one["message"] and one["finish_reason"] == "tool_calls"
    one = joined(thinking_client, **asked, parallel_tool_calls=False, include_reasoning=False)
    assert list(one["calls"]) == [0] and "reasoning" not in one and one["content"] == "One moment."
    assert one["finish_reason"] == "tool_calls"


def test_arguments_come_in_fragments(client: httpx.Client, written: list[str]) -> None:
    city = "Zürich, " * 60  # longer than any draft, whose tokens come at once
    text = CALLS[0].replace("Zürich", city)
    written.append(text)
    chunks = stream(client, "chat/completions", messages=MESSAGES, tools=[WEATHER], **for_text(text))
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert len(parts) > 1 and [part["index"] for part in parts] == [0] * len(parts)
    assert json.loads("".join(part["function"]["arguments"] for part in parts)) == {"city": city}


def test_a_malformed_call_is_text(client: httpx.Client, written: list[str]) -> None:
    text = f"{BROKEN}\n{CALLS[1]}"
    written.append(text)
    asked = {"tools": [WEATHER, CLOCK], **for_text(text)}
    found, streamed = chat(client, **asked), joined(client, **asked)
    assert [call["function"]["name"] for call in found["message"]["tool_calls"]] == ["clock"] and "Zürich" in found["message"][
        "content"
    ]
    assert "Zürich" in streamed["content"] and streamed["finish_reason"] == found["finish_reason"] == "length"
    last = streamed["calls"][max(streamed["calls"])]
    assert (last["name"], last["arguments"]) == ("clock", "{}")
    written[0] = BROKEN
    asked = {"tools": [WEATHER], **for_text(BROKEN)}
    assert chat(client, **asked)["finish_reason"] == joined(client, **asked)["finish_reason"] == "length"
    assert "tool_calls" not in chat(client, **asked)["message"]


def test_without_tools_calls_are_text(client: httpx.Client, written: list[str]) -> None:
    written.append(CALLS[0])
    for asked in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}, {"tool_choice": "none"}):
        choice = chat(client, **asked, **for_text(CALLS[0]))
        assert choice["message"]["content"] == CALLS[0] and choice["finish_reason"] == "length"
        assert "tool_calls" not in choice["message"]


def test_allowed_tools_are_those_of_the_prompt(client: httpx.Client) -> None:
    clock = {"type": "function", "function": {"name": "clock"}}
    for mode, expected in (("auto", "auto"), ("required", "required")):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [clock]}}
        asked = {"messages": MESSAGES, "tools": [WEATHER, CLOCK], "return_prompt_text": True, "temperature": 0, "max_tokens": 60}
        found = post(client, "chat/completions", tool_choice=choice, **asked)
        assert '"clock"' in found["prompt_text"] and '"weather"' not in found["prompt_text"]
        assert ("tool_calls" in found["choices"][0]["message"]) == (expected == "required")


def test_a_conversation_with_calls_and_results(client: httpx.Client, written: list[str]) -> None:
    written.append(CALLS[0])
    message = chat(client, tools=[WEATHER], **for_text(CALLS[0]))["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Sunny."}
    asked = {"messages": [*MESSAGES, message, result], "tools": [WEATHER], "return_prompt_text": True}
    text = post(client, "chat/completions", **asked, **for_text("Fine."))["prompt_text"]
    assert '"Zürich"' in text and "<tool_response>Sunny.</tool_response>" in text and "None" not in text
    wrong = {**result, "tool_call_id": "other"}
    assert "tool_call_id" in refusal(client, "chat/completions", messages=[*MESSAGES, message, wrong], tools=[WEATHER])["message"]


def test_reasoning_effort_goes_to_templates_that_read_it(client: httpx.Client, thinking_client: httpx.Client) -> None:
    def prompt(effort: str | None, **kwargs: Any) -> str:
        asked = {"messages": MESSAGES, "reasoning_effort": effort, "return_prompt_text": True, **kwargs, **GREEDY}
        return str(post(thinking_client, "chat/completions", **asked)["prompt_text"])

    assert prompt("high").endswith("<think>\n") and prompt("medium").endswith("<think>\n")
    assert prompt("none").endswith("assistant\n") and prompt(None).endswith("assistant\n")
    assert prompt("high", chat_template_kwargs={"enable_thinking": False}).endswith("assistant\n")
    assert chat(client, reasoning_effort="medium", **GREEDY) == chat(client, **GREEDY)
    assert refusal(client, "chat/completions", messages=MESSAGES, reasoning_effort="high")["param"] == "reasoning_effort"


def test_thoughts_within_their_budget(thinking_client: httpx.Client) -> None:
    asked = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 4, "temperature": 0, "max_tokens": 24}
    found, streamed = chat(thinking_client, **asked), joined(thinking_client, **asked)
    assert found["message"]["reasoning"] and found["message"]["reasoning"] == streamed["reasoning"]
    assert found["message"]["content"] == streamed["content"]
    assert chat(thinking_client, **{**asked, "thinking_token_budget": -1, "max_tokens": 6})["message"]["content"] == ""


def test_thoughts_of_earlier_answers_go_to_the_template(thinking_llm: AsyncLLM, thinking_client: httpx.Client) -> None:
    for name in ("reasoning", "reasoning_content"):
        messages = [*MESSAGES, {"role": "assistant", "content": "Fine.", name: "Hm."}, *MESSAGES]
        assert chat(thinking_client, messages=messages, **GREEDY)["message"]["role"] == "assistant"
    assert thinking_llm.tokenizer is not None


def test_variables_that_the_template_does_not_read(client: httpx.Client) -> None:
    for kwargs in ({"chat_template_kwargs": {"enable_thinking": True}}, {"documents": [{"title": "a", "text": "b"}]}):
        (name,) = kwargs
        error = refusal(client, "chat/completions", messages=MESSAGES, **kwargs)
        assert ("documents" if name == "documents" else "enable_thinking") in error["message"]
    assert refusal(client, "chat/completions", messages=MESSAGES, chat_template="{{ 1 }}")["param"] == "chat_template"


def test_usage_of_streams(client: httpx.Client) -> None:
    whole = post(client, "chat/completions", messages=MESSAGES, **GREEDY)["usage"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = stream(client, "chat/completions", messages=MESSAGES, stream_options=options, **GREEDY)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["completion_tokens"] == 6
    assert isinstance(last["usage"]["prompt_tokens_details"]["cached_tokens"], int) and chunks[-1]["usage"] == last["usage"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert (
        counts == sorted(counts)
        and counts[-1] == 6
        and {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {whole["prompt_tokens"]}
    )
