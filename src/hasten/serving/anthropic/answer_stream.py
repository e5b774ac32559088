"""``answer_events``: the events of one answer, from the body of its request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from hasten.core.output import Delta
from hasten.core.request import PrefixPin
from hasten.core.request_fault import is_request_fault
from hasten.core.result import FinishReason
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.entrypoints.chat_answers import PreparedChat
from hasten.serving.anthropic.breakpoints import prefix_pins, read_breakpoints
from hasten.serving.anthropic.chat_input import chat_input
from hasten.serving.anthropic.content_writer import ContentWriter, Event
from hasten.serving.anthropic.messages_request import Conversation, MessagesRequest
from hasten.serving.anthropic.signature import sign_thought
from hasten.serving.anthropic.usage import Usage
from hasten.serving.api_error import ApiError, ErrorKind, invalid
from hasten.serving.call import Call


async def prepare(call: Call, body: Conversation) -> PreparedChat:
    """Return the prompt of a conversation. Raises ``ApiError`` and ``InvalidRequest``."""
    if len(body.messages) > call.options.max_messages:
        message = f"messages: there are {len(body.messages)}; allowed: up to {call.options.max_messages}"
        raise invalid(message, param="messages")
    tokenizer = call.llm.tokenizer
    source = None if tokenizer is None else tokenizer.chat_template_source(has_tools=bool(body.tools))
    found = chat_input(body, source or "")
    return await call.llm.prepare_chat(found.messages, tools=found.tools, tool_choice=found.tool_choice, **found.template)


async def answer_events(call: Call, body: MessagesRequest) -> AsyncGenerator[Event, None]:
    """Yield the events of an answer, from ``message_start`` to ``message_stop``.

    The first comes with the first token, when it is known what the request has read from the cache and written to it.
    ``max_tokens`` beyond the room in the context is no error: an answer that fills it ends with ``model_context_window_exceeded``.

    Raises ``ApiError`` and the errors of the engine.
    """
    breakpoints = read_breakpoints(body)
    prepared = await prepare(call, body)
    _check_room(call, prepared)
    pins = await _pins(call, body, prepared) if breakpoints else []
    params = sampling_params(call, body, prepared)
    writer = _content_writer(body)
    num_tokens, usage, last = 0, None, None
    async with aclosing(call.llm.stream_chat(prepared, params, cache_salt=call.caller.cache_salt(), pins=pins)) as deltas:
        async for delta in deltas:
            _raise_failure(delta)
            if usage is None:
                usage = Usage.of(len(prepared.token_ids), delta.metrics)
                yield {"type": "message_start", "message": _empty_message(call, body, usage)}
            num_tokens, last = num_tokens + len(delta.token_ids), delta
            if delta.output is not None:
                call.usage.add(delta.output)
            if body.max_tokens:
                for event in writer.feed(delta):
                    yield event
            if writer.is_complete:
                break
    assert usage is not None and last is not None, "a stream ended without a delta"
    for event in writer.finish():
        yield event
    num_tokens = num_tokens if body.max_tokens else 0
    yield {"type": "message_delta", "delta": _stop(call, body, params, writer, last), "usage": usage.as_delta_usage(num_tokens)}
    yield {"type": "message_stop"}


def _check_room(call: Call, prepared: PreparedChat) -> None:
    """Raise ``ApiError`` if the prompt leaves no room for an answer.

    Clients that shorten a conversation then know it by Anthropic's words.
    """
    limit = call.llm.max_model_len - 1
    if (length := len(prepared.token_ids)) > limit:
        raise invalid(f"prompt is too long: {length} tokens > {limit} maximum", param="messages", code="context_length_exceeded")


def sampling_params(call: Call, body: MessagesRequest, prepared: PreparedChat) -> SamplingParams:
    """Return the settings of a request. Raises ``ApiError`` and ``InvalidRequest``."""
    room = call.llm.max_model_len - len(prepared.token_ids)
    changes: dict[str, Any] = {
        "max_tokens": max(1, min(body.max_tokens, room)),
        "stop": tuple(body.stop_sequences),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "structured_outputs": _form(body, prepared),
    }
    if body.thinking is not None and body.thinking.type == "enabled":
        if body.thinking.budget_tokens >= body.max_tokens:
            message = (
                f"max_tokens must be greater than thinking.budget_tokens; got {body.max_tokens} and {body.thinking.budget_tokens}"
            )
            raise invalid(message, param="thinking.budget_tokens")
        changes["thinking_token_budget"] = body.thinking.budget_tokens
    changes = {name: value for name, value in changes.items() if value is not None}
    if body.top_k is not None:
        changes["top_k"] = body.top_k or None  # 0: no limit
    return call.llm.default_sampling_params().replace(**changes)


def _form(body: MessagesRequest, prepared: PreparedChat) -> StructuredOutputs | None:
    if body.output_config is not None and body.output_config.format is not None:
        return StructuredOutputs(json=body.output_config.format.json_schema)
    is_open = body.tool_choice is None or body.tool_choice.type == "auto"  # other choices have a grammar of their own, or no tools
    if is_open and any(tool.strict for tool in body.tools):
        return StructuredOutputs(grammar=prepared.answers.grammar("auto"))
    return None


async def _pins(call: Call, body: MessagesRequest, prepared: PreparedChat) -> Sequence[PrefixPin]:
    """Return the pins of the marked prefixes; none where the engine has no pins."""
    if not call.llm.describe()["max_pins"]:
        return ()

    async def encode(marked: Conversation) -> tuple[int, ...]:
        return (await prepare(call, marked)).token_ids

    return await prefix_pins(body, read_breakpoints(body), prepared.token_ids, encode)


def _content_writer(body: MessagesRequest) -> ContentWriter:
    return ContentWriter(
        sign_thought,
        eager_tools={tool.name for tool in body.tools if tool.eager_input_streaming and body.stream},
        one_call=body.takes_one_call,
        omit_thoughts=getattr(body.thinking, "display", None) == "omitted",
    )


def _empty_message(call: Call, body: MessagesRequest, usage: Usage) -> dict[str, Any]:
    return {
        "id": f"msg_{call.id}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage.as_message_usage(0),
    }


def _raise_failure(delta: Delta) -> None:
    if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
        error = None if delta.output is None else delta.output.error
        if is_request_fault(error):
            raise invalid(str(error))
        raise ApiError(ErrorKind.INTERNAL, error or "the request was ended before its answer was complete")


def _stop(call: Call, body: MessagesRequest, params: SamplingParams, writer: ContentWriter, last: Delta) -> dict[str, str | None]:
    """Return why the answer has ended."""
    if (last.finish_reason is FinishReason.LENGTH and not writer.is_complete) or not body.max_tokens:
        is_cut = params.max_tokens is not None and params.max_tokens < body.max_tokens
        return {"stop_reason": "model_context_window_exceeded" if is_cut else "max_tokens", "stop_sequence": None}
    text = last.stop_reason
    if isinstance(text, int):  # a stop sequence that is a special token
        special = {} if call.llm.tokenizer is None else call.llm.tokenizer.special_token_ids
        text = next((each for each in body.stop_sequences if special.get(each) == text), None)
    if text is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": text}
    return {"stop_reason": "tool_use" if writer.num_calls else "end_turn", "stop_sequence": None}
