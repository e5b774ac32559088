"""OpenAI's own client, with strict validation of responses, against a real server.

The vendor's type of a completion has no null in ``finish_reason`` and ``token_logprobs``. OpenAI's API sends null in chunks and for
the first token of an echo, so these objects are read without the vendor's check and checked here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from tests.serving.live_server import live_server

from hasten import LLM, SamplingParams
from hasten.core.result import FinishReason
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.openai.surface import openai_surface
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.text.tokenizer import TextTokenizer

DEMO = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "model"
OPTIONS: dict[str, Any] = {"threads": 1, "kv_cache_memory": "32MiB", "max_model_len": 512, "reasoning_parser": "qwen3"}
PROMPT = "def add(a, b):\n    return"
MESSAGES: Any = [{"role": "user", "content": "Write a function."}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": ARGUMENTS}} for name in ("weather", "clock")]
ANSWER = (
    '<think>\nLook it up.\n</think>\n\nOne moment.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
)
DEADLINE = 20.0  # seconds


class CompletionChunkLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChunkChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionChunkLogprobs | None


class CompletionChunk(BaseModel):
    """OpenAI's completion with the nulls that its API sends."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: CompletionUsage | None = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo model with a chat template that begins a thought where ``enable_thinking`` is set."""
    folder = tmp_path_factory.mktemp("thinking")
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    template = (DEMO / "chat_template.jinja").read_text()
    marker = "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    assert marker in template
    thought = "{{ '<think>\\n' if enable_thinking }}{# </think> #}"
    (folder / "chat_template.jinja").write_text(template.replace(marker, marker + thought))
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), **OPTIONS) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(str(folder), **OPTIONS)
    yield llm
    asyncio.run(llm.close())


@pytest.fixture(scope="module")
def url(served: AsyncLLM) -> Iterator[str]:
    state = ServerState(ServerOptions(), SingleModel("demo", served, max_requests=8))  # prompts times answers
    with live_server(create_app(state, [openai_surface()])) as found:
        yield f"{found}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60, _strict_response_validation=True) as opened:
        yield opened


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Return a function that sets the text of the next answers, three characters per token, and returns their settings."""
    texts: list[str] = []

    class WrittenAnswer:
        def __init__(self) -> None:
            self._pieces = [texts[0][i : i + 3] for i in range(0, len(texts[0]), 3)]

        def push(self, token_id: int) -> str:
            return self._pieces.pop(0) if self._pieces else ""

        def flush(self) -> str:
            return ""

    def detokenizer(self: TextTokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> WrittenAnswer:
        return WrittenAnswer()

    def write(text: str) -> dict[str, Any]:
        texts[:] = [text]
        return {"temperature": 0, "max_tokens": len(text) // 3 + 1, "extra_body": {"ignore_eos": True}}

    monkeypatch.setattr(TextTokenizer, "detokenizer", detokenizer)
    return write


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "demo" and client.models.retrieve("demo") == model
    assert (model.model_extra or {})["max_model_len"] == 512
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("settings", [GREEDY, {"temperature": 1.3, "seed": 5, "max_tokens": 9, "n": 2, "top_p": 1.0}])
def test_completions_equal_those_in_process(client: OpenAI, llm: LLM, settings: dict[str, Any]) -> None:
    (expected,) = llm.generate(PROMPT, llm.default_sampling_params().replace(**settings), use_tqdm=False)
    ids = llm.tokenizer.encode(PROMPT)
    for prompt in (PROMPT, ids, [PROMPT], [ids]):
        found = client.completions.create(model="demo", prompt=prompt, **settings)
        assert [choice.text for choice in found.choices] == [each.text for each in expected.outputs]
        assert found.usage is not None and found.usage.prompt_tokens == len(ids)
        assert found.usage.prompt_tokens_details is not None and found.usage.prompt_tokens_details.cached_tokens is not None
    both = client.completions.create(model="demo", prompt=[PROMPT, "import"], **settings)
    assert len(both.choices) == 2 * len(expected.outputs)
    assert [choice.text for choice in both.choices[: len(expected.outputs)]] == [each.text for each in expected.outputs]


def test_completions_with_every_setting(client: OpenAI, llm: LLM) -> None:
    settings = {
        "temperature": 0.8,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.2,
        "seed": 11,
        "max_tokens": 12,
        "logit_bias": {"100": 5},
        "stop": ["zebra"],
        "logprobs": 2,
    }
    own = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 3, "bad_words": ["self"], "ignore_eos": True}
    (expected,) = llm.generate(PROMPT, SamplingParams(**settings, **own), use_tqdm=False)
    found = client.completions.create(model="demo", prompt=PROMPT, user="me", extra_body=own, **settings)
    assert found.choices[0].text == expected.outputs[0].text
    logprobs, tokens = found.choices[0].logprobs, expected.outputs[0].logprobs
    assert logprobs is not None and tokens is not None
    assert logprobs.token_logprobs == [token.logprob for token in tokens]
    assert logprobs.tokens is not None and "".join(logprobs.tokens) == found.choices[0].text


def test_streamed_completions(client: OpenAI, url: str) -> None:
    settings: dict[str, Any] = {"temperature": 1.3, "seed": 5, "max_tokens": 9, "n": 2}
    whole = client.completions.create(model="demo", prompt=[PROMPT, "import"], **settings)
    texts = dict.fromkeys(range(4), "")
    reasons = {}
    with OpenAI(base_url=url, api_key="none", max_retries=0) as lenient:
        options: Any = {"include_usage": True}
        chunks = list(
            lenient.completions.create(model="demo", prompt=[PROMPT, "import"], stream=True, stream_options=options, **settings)
        )
    for chunk in chunks:
        for choice in CompletionChunk.model_validate(chunk.to_dict()).choices:
            texts[choice.index] += choice.text
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and chunks[-1].choices == []


def test_echoed_scores(url: str, llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPT)
    (score,) = llm.score({"prompt_token_ids": ids[:3]}, [{"token_ids": ids[3:]}])
    with OpenAI(base_url=url, api_key="none", max_retries=0) as lenient:
        found = lenient.completions.create(model="demo", prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0)
    choice = CompletionChunk.model_validate(found.to_dict()).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs[3:-1] == pytest.approx(list(score.logprobs), abs=2e-3)
    assert choice.logprobs.token_logprobs[0] is None and len(choice.logprobs.top_logprobs) == len(ids) + 1


def test_chat_equals_that_in_process(client: OpenAI, llm: LLM) -> None:
    settings: dict[str, Any] = {"temperature": 1.3, "seed": 5, "n": 2, "top_p": 1.0}
    (expected,) = llm.chat(MESSAGES, SamplingParams(max_tokens=9, logprobs=2, **settings), use_tqdm=False)
    asked = {"model": "demo", "messages": MESSAGES, "max_completion_tokens": 9, "logprobs": True, "top_logprobs": 2, **settings}
    found = client.chat.completions.create(**asked)
    assert [choice.message.content for choice in found.choices] == [each.text for each in expected.outputs]
    for choice, completion in zip(found.choices, expected.outputs, strict=True):
        assert choice.logprobs is not None and choice.logprobs.content is not None and completion.logprobs is not None
        assert [each.logprob for each in choice.logprobs.content] == [token.logprob for token in completion.logprobs]
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    for index, choice in enumerate(found.choices):
        parts = [part for chunk in chunks for part in chunk.choices if part.index == index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.delta.role for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        content = [each for part in parts if part.logprobs for each in part.logprobs.content or ()]
        assert choice.logprobs is not None and content == choice.logprobs.content
    assert found.usage is not None and chunks[-1].usage is not None and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == found.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {found.id}


def test_stops_and_biases(client: OpenAI) -> None:
    text = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=30).choices[0].message.content
    assert text is not None
    word = text[8:11]
    stopped = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, max_tokens=30, stop=[word]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(word)], "stop")
    biased = client.completions.create(
        model="demo", prompt=PROMPT, logit_bias={"500": 100}, extra_body={"return_token_ids": True}, **GREEDY
    )
    assert (biased.choices[0].model_extra or {})["token_ids"] == [500] * 6


class Place(BaseModel):
    name: Literal["Oslo", "Rome"]
    is_far: bool


def test_parsed_answers(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Place, temperature=0)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    with client.chat.completions.stream(model="demo", messages=MESSAGES, response_format=Place, temperature=0) as events:
        kinds = {event.type for event in events}
        assert events.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
    assert {"chunk", "content.delta", "content.done"} <= kinds
    found = client.chat.completions.create(
        model="demo", messages=MESSAGES, response_format={"type": "json_object"}, temperature=1, seed=1, max_tokens=80
    )
    assert (found.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_demanded_calls(client: OpenAI, choice: Any) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "temperature": 0}
    asked |= {"max_tokens": 60, "parallel_tool_calls": False, "extra_body": {"thinking_token_budget": 0}}
    found = client.chat.completions.create(**asked).choices[0]
    assert found.finish_reason == "tool_calls" and found.message.tool_calls
    call = found.message.tool_calls[0]
    assert call.type == "function" and call.function.name in ("weather", "clock")
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    with client.chat.completions.stream(**asked) as events:
        streamed = events.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls" and streamed.message.tool_calls
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments


def test_calls_and_thoughts(client: OpenAI, written: Callable[[str], dict[str, Any]]) -> None:
    settings = {**written(ANSWER), "parallel_tool_calls": False}
    found = client.chat.completions.create(model="demo", messages=MESSAGES, tools=TOOLS, **settings).choices[0]
    assert (found.finish_reason, found.message.content) == ("tool_calls", "One moment.")
    assert (found.message.model_extra or {})["reasoning"] == "Look it up."
    (call,) = found.message.tool_calls or ()
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "Zürich"}
    with client.chat.completions.stream(model="demo", messages=MESSAGES, tools=TOOLS, **settings) as events:
        final = events.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls or ()
    assert (final.message.content, final.finish_reason) == ("One moment.", "tool_calls")
    assert streamed.function.arguments == call.function.arguments and streamed.function.name == "weather"
    chunks = list(client.chat.completions.create(model="demo", messages=MESSAGES, tools=TOOLS, stream=True, **settings))
    thought = [(chunk.choices[0].delta.model_extra or {}).get("reasoning", "") for chunk in chunks]
    assert "".join(thought) == "Look it up."
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    history: Any = [*MESSAGES, found.message.to_dict(), result]
    assert client.chat.completions.create(model="demo", messages=history, tools=TOOLS, **settings).choices[0].message.tool_calls


def test_reasoning_effort(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": MESSAGES, **GREEDY, "max_tokens": 12}
    thinking = client.chat.completions.create(reasoning_effort="high", extra_body={"thinking_token_budget": 3}, **asked)
    assert (thinking.choices[0].message.model_extra or {})["reasoning"]
    plain = client.chat.completions.create(reasoning_effort="none", **asked)
    assert "reasoning" not in (plain.choices[0].message.model_extra or {}) and plain.choices[0].message.content


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"extra_body": {"temprature": 1}}, "temprature", None),
        ({"extra_body": {"guided_json": {}}}, "guided_json", None),
        ({"temperature": -1}, "temperature", None),
        ({"store": True}, "store", None),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", None),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
            "messages.0.content.0",
            None,
        ),
        ({"tool_choice": "required"}, "tool_choice", None),
    ],
)
def test_bad_requests(client: OpenAI, body: dict[str, Any], param: str, code: str | None) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, "stream": stream, **body})
        assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


def test_other_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=MESSAGES)
    endless: Any = {"extra_body": {"ignore_eos": True}, "max_tokens": 480}
    with client.chat.completions.create(model="demo", messages=MESSAGES, n=5, stream=True, **endless) as stream:
        assert next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="demo", prompt=["a", "b"], n=2)
    assert caught.value.code == "queue_full" and int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_an_error_amid_a_stream_is_raised(
    client: OpenAI, url: str, served: AsyncLLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    original = AsyncLLM._stream

    async def failing(self: AsyncLLM, *arguments: Any) -> Any:
        async for delta in original(self, *arguments):
            yield delta
            raise RuntimeError("a bug")

    monkeypatch.setattr(AsyncLLM, "_stream", failing)
    path, body = ("chat/completions", {"messages": MESSAGES}) if kind == "chat" else ("completions", {"prompt": PROMPT})
    with OpenAI(base_url=url, api_key="none", max_retries=0) as lenient:
        kind_of_stream: Any = openai.Stream[ChatCompletionChunk]
        asked = {"model": "demo", "stream": True, **body, **GREEDY}
        stream = iter(lenient.post(f"/{path}", body=asked, cast_to=object, stream=True, stream_cls=kind_of_stream))
        assert next(stream)
        with pytest.raises(openai.APIError, match="its log says why") as caught:
            next(stream)
    assert caught.value.code == "internal_error"
    text = httpx.post(f"{url}/{path}", json={"stream": True, **body, **GREEDY}).text
    assert "[DONE]" not in text and text.endswith("}}\n\n") and text.count("data: ") == 2


@pytest.mark.parametrize("kind", ["error", "abort"])
def test_a_failed_output_is_never_a_success(client: OpenAI, url: str, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    original = AsyncLLM._stream

    async def failing(self: AsyncLLM, *arguments: Any) -> Any:
        async for delta in original(self, *arguments):
            if delta.output is None:
                yield delta
                continue
            outputs = tuple(dataclasses.replace(each, finish_reason=FinishReason(kind)) for each in delta.output.outputs)
            output = dataclasses.replace(delta.output, outputs=outputs, error="no token is allowed" if kind == "error" else None)
            yield dataclasses.replace(delta, finish_reason=FinishReason(kind), output=output)

    monkeypatch.setattr(AsyncLLM, "_stream", failing)
    expected = openai.InternalServerError
    with pytest.raises(expected):
        client.chat.completions.create(model="demo", messages=MESSAGES, **GREEDY)
    with pytest.raises(expected):
        client.completions.create(model="demo", prompt=PROMPT, **GREEDY)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="demo", messages=MESSAGES, stream=True, **GREEDY))
    for path, body in (("chat/completions", {"messages": MESSAGES}), ("completions", {"prompt": [PROMPT, PROMPT]})):
        assert "[DONE]" not in httpx.post(f"{url}/{path}", json={"stream": True, **body, **GREEDY}).text


def test_closing_a_stream_ends_its_request(client: OpenAI, served: AsyncLLM) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": MESSAGES,
        "stream": True,
        "max_tokens": 400,
        "extra_body": {"ignore_eos": True},
    }
    stream = client.chat.completions.create(**asked)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + DEADLINE
    requests = asyncio.run(served.stats())["requests"]
    while requests["running"] + requests["waiting"] and time.monotonic() < deadline:
        requests = asyncio.run(served.stats())["requests"]
    assert requests["running"] == requests["waiting"] == 0 and requests["finished"]["abort"] >= 1


def test_many_clients_at_a_time_get_their_own_answers(url: str, client: OpenAI) -> None:
    prompts = [f"def f{i}(" for i in range(8)]
    expected = [
        client.completions.create(model="demo", prompt=each, seed=i, max_tokens=8).choices[0].text for i, each in enumerate(prompts)
    ]

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, _strict_response_validation=True) as asynchronous:
            calls = [
                asynchronous.completions.create(model="demo", prompt=each, seed=i, max_tokens=8) for i, each in enumerate(prompts)
            ]
            return [found.choices[0].text for found in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == expected and len(set(expected)) > 1
