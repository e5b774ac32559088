"""Anthropic's own SDK, with strict validation of responses, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import anthropic
import httpx
import jsonschema
import pytest
from anthropic import Anthropic, AsyncAnthropic
from tests.serving.anthropic.written_llm import WrittenLLM, thinking_folder
from tests.serving.live_server import live_server

from hasten.core.errors import CapacityError, HastenError
from hasten.core.result import FinishReason
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.anthropic.surface import anthropic_surface
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.app import create_app
from hasten.serving.models.base import ModelRegistry
from hasten.serving.models.single import SingleModel
from hasten.serving.safety.http_protocol import uvicorn_settings
from hasten.serving.safety.protect import protect
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState

STRICT: dict[str, Any] = {"api_key": "key", "max_retries": 0, "_strict_response_validation": True, "timeout": 60}
HELLO: list[Any] = [{"role": "user", "content": "Write a function."}]
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False}
TOOLS: list[Any] = [
    {"name": "weather", "description": "Tell the weather.", "input_schema": SCHEMA},
    {"name": "clock", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]
NARROW: list[Any] = [{**TOOLS[0], "strict": True}]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    llm = AsyncLLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512)
    with served(SingleModel("demo", llm), max_body_bytes=20_000) as found:
        yield found
    asyncio.run(llm.close())


def served(models: ModelRegistry, **options: Any) -> AbstractContextManager[str]:
    """Return the context of a server with all its checks, for the keys "key" and "other"."""
    state, surfaces = ServerState(ServerOptions(api_keys=("key", "other"), **options), models), [anthropic_surface()]
    return live_server(protect(create_app(state, surfaces), state, surfaces), **uvicorn_settings(state.options))


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=url, **STRICT) as opened:
        yield opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WrittenLLM, Anthropic]]:
    """Return a model whose answers are written, and a client of it."""
    llm = WrittenLLM(thinking_folder(tmp_path_factory.mktemp("thinking")))
    with served(SingleModel("demo", llm)) as found, Anthropic(base_url=found, **STRICT) as opened:
        yield llm, opened
    asyncio.run(llm.close())


def ask(client: Anthropic, **options: Any) -> Any:
    """Return the answer to a greedy request, which both ways to stream give too, event by event."""
    options = {"model": "demo", "max_tokens": 12, "messages": HELLO, **options}
    body = {"temperature": 0, **options.pop("extra_body", {})}
    message = client.messages.create(**options, extra_body=body)
    with client.messages.stream(**options, extra_body=body) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    raw = list(client.messages.create(**options, extra_body=body, stream=True))
    assert [event.type for event in raw[-2:]] == ["message_delta", "message_stop"]
    start, end = raw[0].message, raw[-2]
    assert (start.content, start.stop_reason, start.role) == ([], None, "assistant")
    assert end.usage.output_tokens == message.usage.output_tokens and end.delta.stop_reason == message.stop_reason
    assert _plain(streamed.content) == _plain(message.content)
    assert (streamed.stop_reason, streamed.stop_sequence) == (message.stop_reason, message.stop_sequence)
    for usage in (message.usage, start.usage, end.usage, streamed.usage):
        assert usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens == _prompt(message)
    return message


def _prompt(message: Any) -> int:
    usage = message.usage
    return int(usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens)


def _plain(content: Sequence[Any]) -> list[dict[str, Any]]:
    """Return blocks without the ids of calls, which are random, and without what the stream helpers add."""
    return [block.model_dump(exclude={"id", "parsed_output"}) for block in content]


def blocks(message: Any) -> list[tuple[str, Any]]:
    return [(block.type, getattr(block, block.type, None) or getattr(block, "input", None)) for block in message.content]


# ---------------------------------------------------------------- texts


def test_a_text_with_its_ids_usage_and_stop_reason(client: Anthropic) -> None:
    message = ask(client)
    assert message.id.startswith("msg_") and message._request_id == f"req_{message.id.removeprefix('msg_')}"
    assert message.model == "demo" and message.stop_reason == "max_tokens" and message.usage.output_tokens == 12
    assert [block.type for block in message.content] == ["text"]
    assert message.usage.input_tokens == client.messages.count_tokens(model="demo", messages=HELLO).input_tokens
    assert message.usage.cache_creation.ephemeral_5m_input_tokens == 0


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    text = ask(client).content[0].text
    stop = text.strip()[3:6]
    message = ask(client, stop_sequences=["never in it", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content) == text[: text.index(stop)]
    special = ask(client, stop_sequences=["<|im_end|>"], extra_body={"top_k": 1}, max_tokens=1)
    assert (special.stop_reason, special.stop_sequence) == ("max_tokens", None)


def test_a_stop_sequence_that_is_a_special_token_is_named(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    assert llm.tokenizer is not None
    llm.write("Bye", stop=llm.tokenizer.special_token_ids["<|im_end|>"])
    message = ask(client, stop_sequences=["<|im_end|>"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "<|im_end|>")


def test_an_answer_that_fills_the_context_says_so(client: Anthropic) -> None:
    message = ask(client, max_tokens=100_000, messages=[{"role": "user", "content": "word " * 470}])
    assert message.stop_reason == "model_context_window_exceeded"
    assert _prompt(message) + message.usage.output_tokens == 512


def test_no_tokens_at_all_compute_and_pin_the_prompt(client: Anthropic) -> None:
    system = [{"type": "text", "text": "Warm me up. " * 20, "cache_control": {"type": "ephemeral"}}]
    options: dict[str, Any] = {"model": "demo", "messages": HELLO, "system": system}
    message = client.messages.create(**options, max_tokens=0)
    assert (message.content, message.usage.output_tokens, message.stop_reason) == ([], 0, "max_tokens")
    again = client.messages.create(**options, max_tokens=1)
    assert again.usage.cache_read_input_tokens == message.usage.cache_creation_input_tokens > 0


def test_sampling_settings_and_system_prompts_reach_the_model(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    llm.write("Yes.")
    body = {"temperature": 0.25, "top_p": 0.5, "top_k": 7}
    message = ask(client, system="Be brief.", extra_body=body, stop_sequences=["x"])
    params = llm.params[-1]
    assert (params.temperature, params.top_p, params.top_k, params.stop, params.max_tokens) == (0.25, 0.5, 7, ("x",), 12)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in llm.prompts[-1]
    assert (message.stop_reason, blocks(message)) == ("end_turn", [("text", "Yes.")])
    ask(client)
    defaults = llm.default_sampling_params()
    assert (llm.params[-1].top_p, llm.params[-1].top_k) == (defaults.top_p, defaults.top_k)


def test_an_answer_continues_the_last_message(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    llm.write(" Rome.")
    message = ask(client, messages=[*HELLO, {"role": "assistant", "content": "It is"}])
    assert llm.prompts[-1].endswith("<|im_start|>assistant\nIt is") and blocks(message) == [("text", " Rome.")]


def test_an_output_format_holds(client: Anthropic) -> None:
    message = ask(client, max_tokens=40, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert message.stop_reason == "end_turn"
    jsonschema.validate(json.loads(message.content[0].text), SCHEMA)


# ---------------------------------------------------------------- tools


def test_a_demanded_call_fits_its_schema_and_its_result_goes_back(client: Anthropic) -> None:
    message = ask(client, max_tokens=60, tools=TOOLS, tool_choice={"type": "tool", "name": "weather"})
    assert message.stop_reason == "tool_use"
    (use,) = (block for block in message.content if block.type == "tool_use")
    assert use.name == "weather" and use.id.startswith("toolu_")
    jsonschema.validate(use.input, SCHEMA)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    turns: list[Any] = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    later = ask(client, messages=turns, tools=TOOLS)
    assert _prompt(later) == client.messages.count_tokens(model="demo", messages=turns, tools=TOOLS).input_tokens
    wrong = [*turns[:2], {"role": "user", "content": [{**result, "tool_use_id": "toolu_other"}]}]
    with pytest.raises(anthropic.BadRequestError, match="belongs to no tool call"):
        ask(client, messages=wrong, tools=TOOLS)


def test_any_demands_calls_and_one_at_most_where_they_are_not_parallel(client: Anthropic) -> None:
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    message = ask(client, max_tokens=200, tools=NARROW, tool_choice=choice)
    assert [block.type for block in message.content] == ["tool_use"] and message.stop_reason == "tool_use"


def test_answers_with_texts_and_several_calls(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    llm.write("One moment.\n" + call("weather", '{"city": "Oslo"}') + "\n" + call("clock", "{}"))
    message = ask(client, tools=TOOLS)
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert (message.content[1].input, message.content[2].input) == ({"city": "Oslo"}, {})
    assert message.stop_reason == "tool_use"
    single = ask(client, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in single.content] == ["text", "tool_use"] and llm.num_read < len(llm.pieces)
    llm.write(call("weather", '{"city": "Oslo"}') + "\n" + call("clock", "{}")[:20], finish=FinishReason.LENGTH)
    assert ask(client, tools=TOOLS).stop_reason == "max_tokens"


def test_an_eager_tool_streams_its_input(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    llm.write(call("weather", '{"city": "Oslo"}'))

    def fragments(**options: Any) -> list[str]:
        tools: Any = [{**TOOLS[0], **options}]
        with client.messages.stream(model="demo", max_tokens=90, messages=HELLO, tools=tools) as stream:
            found = [event.partial_json for event in stream if event.type == "input_json"]
            assert stream.get_final_message().content[0].input == {"city": "Oslo"}
        return found

    assert len(fragments(eager_input_streaming=True)) > 2 and len(fragments()) == 1


def test_strict_tools_hold_calls_to_their_schemas(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    llm.write("No call.")
    assert blocks(ask(client, tools=NARROW)) == [("text", "No call.")]
    form = llm.params[-1].structured_outputs
    assert form is not None and form.grammar is not None and "Oslo" in form.grammar
    ask(client, tools=TOOLS)
    assert llm.params[-1].structured_outputs is None
    ask(client, tools=NARROW, tool_choice={"type": "none"})
    assert llm.params[-1].structured_outputs is None and "weather" not in llm.prompts[-1]


# ---------------------------------------------------------------- thoughts


def test_a_thought_comes_signed_and_goes_back_to_the_template(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    llm.write("Look it up.\n</think>\n\nIt is sunny.")
    message = ask(client, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == "Look it up." and len(message.content[0].signature) == 44
    assert llm.params[-1].thinking_token_budget == 1024 and llm.prompts[-1].endswith("<|im_start|>assistant\n<think>\n")
    turns: list[Any] = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": "And?"}]
    ask(client, messages=turns, thinking={"type": "adaptive"})
    assert "<think>\nLook it up.\n</think>\n\nIt is sunny.<|im_end|>" in llm.prompts[-1]
    assert llm.params[-1].thinking_token_budget is None and llm.prompts[-1].endswith("<think>\n")
    hidden = ask(client, thinking={"type": "adaptive", "display": "omitted"})
    assert hidden.content[0].thinking == "" and hidden.content[0].signature == message.content[0].signature


@pytest.mark.parametrize("options", [{}, {"thinking": {"type": "disabled"}}])
def test_a_request_that_asks_for_no_thought_gets_none(written: tuple[WrittenLLM, Anthropic], options: dict[str, Any]) -> None:
    llm, client = written
    llm.write("It is sunny.")
    assert blocks(ask(client, **options)) == [("text", "It is sunny.")] and llm.prompts[-1].endswith("assistant\n")


def test_a_budget_is_refused_for_a_model_without_thoughts(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="thinking_token_budget=1024"):
        ask(client, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})


# ---------------------------------------------------------------- prompt caching and counts


def test_marked_prefixes_are_written_and_then_read(client: Anthropic) -> None:
    long: Any = {"type": "ephemeral", "ttl": "1h"}
    system: list[Any] = [{"type": "text", "text": "You know everything about parsers. " * 9, "cache_control": long}]
    turns: list[Any] = [{"role": "user", "content": "Tell me what a lexer is and what it is not. " * 4}]
    options: dict[str, Any] = {"model": "demo", "max_tokens": 1, "system": system, "messages": turns}
    first = client.messages.create(**options, cache_control={"type": "ephemeral"}).usage
    assert first.cache_read_input_tokens == 0 and first.cache_creation is not None
    written = (first.cache_creation.ephemeral_1h_input_tokens, first.cache_creation.ephemeral_5m_input_tokens)
    assert min(written) >= 16 and not any(count % 16 for count in written) and sum(written) == first.cache_creation_input_tokens
    again = ask(client, **options, cache_control={"type": "ephemeral"}).usage
    assert (again.cache_read_input_tokens, again.cache_creation_input_tokens) == (sum(written), 0)
    other = ask(client, **{**options, "messages": HELLO}).usage
    assert (other.cache_read_input_tokens, other.cache_creation_input_tokens) == (written[0], 0)


def test_counts_are_those_of_the_same_request(client: Anthropic) -> None:
    mark: Any = {"type": "ephemeral"}
    options: dict[str, Any] = {
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Or not.", "cache_control": mark}],
        "tools": TOOLS,
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "disabled"},
        "messages": [*HELLO, {"role": "assistant", "content": "def f():"}],
    }
    for number in range(len(options)):
        chosen = dict(list(options.items())[number:])
        assert client.messages.count_tokens(model="demo", **chosen).input_tokens == _prompt(ask(client, **chosen))


# ---------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def failing_url() -> Iterator[str]:
    """Return the URL of a server that fails as the model's name says."""

    class Failing(SingleModel):
        @asynccontextmanager
        async def use(self, name: str | None) -> Any:
            if name == "capacity":
                raise CapacityError("the KV blocks are held")
            if name == "ended":
                raise HastenError("the engine has ended")
            if name == "bug":
                raise ZeroDivisionError("a secret")
            if name == "queue":
                raise ApiError(ErrorKind.RATE_LIMIT, "full", code="queue_full", retry_after=7)
            if name in ErrorKind.__members__:
                raise ApiError(ErrorKind[name], f"it is {name}")
            async with super().use(name) as model:
                yield model

    llm = AsyncLLM("demo", threads=1, kv_cache_memory="8MiB", max_model_len=128)
    with served(Failing("demo", llm)) as found:
        yield found
    asyncio.run(llm.close())


@pytest.mark.parametrize(
    ("model", "error", "status", "kind"),
    [
        ("INVALID_REQUEST", anthropic.BadRequestError, 400, "invalid_request_error"),
        ("AUTHENTICATION", anthropic.AuthenticationError, 401, "authentication_error"),
        ("PERMISSION", anthropic.PermissionDeniedError, 403, "permission_error"),
        ("unknown", anthropic.NotFoundError, 404, "not_found_error"),
        ("TOO_LARGE", anthropic.APIStatusError, 413, "request_too_large"),
        ("RATE_LIMIT", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("bug", anthropic.InternalServerError, 500, "api_error"),
        ("TIMEOUT", anthropic.InternalServerError, 504, "timeout_error"),
        ("queue", anthropic.InternalServerError, 529, "overloaded_error"),
        ("capacity", anthropic.InternalServerError, 529, "overloaded_error"),
        ("ended", anthropic.InternalServerError, 529, "overloaded_error"),
        ("UNAVAILABLE", anthropic.InternalServerError, 529, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_types(
    failing_url: str, model: str, error: type[anthropic.APIStatusError], status: int, kind: str, stream: bool
) -> None:
    with Anthropic(base_url=failing_url, **STRICT) as client, pytest.raises(anthropic.APIStatusError) as raised:
        client.messages.create(model=model, max_tokens=1, messages=HELLO, stream=stream)
    found = raised.value
    assert isinstance(found, error)
    assert found.status_code == status and isinstance(found.body, dict)
    assert found.body["type"] == "error" and found.body["error"]["type"] == kind and "secret" not in str(found.body)
    assert found.request_id is not None and found.body["request_id"] == found.request_id
    assert (found.response.headers.get("retry-after") == "7") == (model == "queue")


def test_wrong_keys_and_large_bodies_are_refused_and_both_headers_carry_keys(url: str) -> None:
    def ask_with(messages: list[Any] = HELLO, **keys: Any) -> Any:
        with Anthropic(base_url=url, **{**STRICT, **keys}) as client:
            return client.messages.create(model="demo", max_tokens=1, messages=messages)

    assert ask_with(api_key="other").usage.output_tokens == 1
    assert ask_with(api_key=None, auth_token="key").usage.output_tokens == 1
    with pytest.raises(anthropic.AuthenticationError) as raised:
        ask_with(api_key="wrong")
    assert isinstance(raised.value.body, dict) and raised.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.APIStatusError) as too_large:
        ask_with([{"role": "user", "content": "x" * 20_000}])
    assert too_large.value.status_code == 413 and isinstance(too_large.value.body, dict)
    assert too_large.value.body["error"]["type"] == "request_too_large" and too_large.value.request_id is not None


def test_keys_share_no_cache(url: str) -> None:
    system: Any = [{"type": "text", "text": "Only one key may read this. " * 12, "cache_control": {"type": "ephemeral"}}]

    def usage(key: str) -> tuple[int, int]:
        with Anthropic(base_url=url, **{**STRICT, "api_key": key}) as client:
            found = client.messages.create(model="demo", max_tokens=1, messages=HELLO, system=system).usage
        return int(found.cache_read_input_tokens or 0), int(found.cache_creation_input_tokens or 0)

    (none, written), (read, again) = usage("key"), usage("key")
    assert none == again == 0 and written == read > 0
    assert usage("other") == (0, written)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_ends(written: tuple[WrittenLLM, Anthropic], stream: bool) -> None:
    llm, _ = written
    llm.is_stuck = True
    llm.answer_began.clear()
    llm.answer_ended.clear()
    try:
        with served(SingleModel("demo", llm), request_timeout=0.5) as url, Anthropic(base_url=url, **STRICT) as client:
            with pytest.raises(anthropic.InternalServerError) as raised:
                client.messages.create(model="demo", max_tokens=9, messages=HELLO, stream=stream)
            assert not llm.answer_began.is_set() or llm.answer_ended.wait(20), "the engine's request has ended, too"
    finally:
        llm.is_stuck = False
    assert raised.value.status_code == 504 and isinstance(raised.value.body, dict)
    assert raised.value.body["error"]["type"] == "timeout_error"


def test_the_sdk_retries_an_overload(client: Anthropic) -> None:
    assert [client._should_retry(httpx.Response(status)) for status in (529, 429, 504, 400)] == [True, True, True, False]


def test_an_error_after_the_first_event_is_an_event(written: tuple[WrittenLLM, Anthropic]) -> None:
    llm, client = written
    llm.write("Hello, wor")
    llm.error = HastenError("the engine has ended")
    kinds: list[str] = []
    stream = client.messages.create(model="demo", max_tokens=9, messages=HELLO, stream=True)
    with pytest.raises(anthropic.APIStatusError) as raised:
        kinds.extend(event.type for event in stream)
    assert kinds[0] == "message_start" and "message_stop" not in kinds
    assert isinstance(raised.value.body, dict) and raised.value.body["error"]["type"] == "overloaded_error"
    with pytest.raises(anthropic.InternalServerError):
        client.messages.create(model="demo", max_tokens=9, messages=HELLO)


def test_the_beta_routes_are_the_same(client: Anthropic) -> None:
    options: dict[str, Any] = {"model": "demo", "max_tokens": 4, "messages": HELLO, "extra_body": {"temperature": 0}}
    edits: Any = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    beta = client.beta.messages.create(**options, betas=["context-management-2025-06-27"], context_management=edits)
    assert blocks(beta) == blocks(client.messages.create(**options))
    with client.beta.messages.stream(**options) as stream:
        assert blocks(stream.get_final_message()) == blocks(beta)
    count = client.beta.messages.count_tokens(model="demo", messages=HELLO)
    assert count.input_tokens == beta.usage.input_tokens


def test_the_asynchronous_client(url: str) -> None:
    async def run() -> None:
        async with AsyncAnthropic(base_url=url, **STRICT) as client:
            messages = await asyncio.gather(
                *(
                    client.messages.create(model="demo", max_tokens=4, messages=HELLO, extra_body={"temperature": 0})
                    for _ in range(8)
                )
            )
            async with client.messages.stream(model="demo", max_tokens=4, messages=HELLO, extra_body={"temperature": 0}) as stream:
                text = await stream.get_final_text()
            assert {str(blocks(message)) for message in messages} == {str([("text", text)])}

    asyncio.run(run())
