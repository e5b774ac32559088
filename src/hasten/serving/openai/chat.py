"""``POST /v1/chat/completions``: answers in conversations."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.core.errors import PromptTooLong
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.entrypoints.chat_answers import PreparedChat
from hasten.serving.api_error import invalid
from hasten.serving.call import Call, open_call
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.openai.chat_choice import ChoiceStream, complete_choice
from hasten.serving.openai.chat_request import ChatRequest
from hasten.serving.openai.events import event, with_end
from hasten.serving.openai.fingerprint import fingerprint
from hasten.serving.openai.finish import check_delta, check_output
from hasten.serving.openai.logprobs import prompt_logprobs
from hasten.serving.openai.sampling import engine_options, read_max_tokens, read_sampling
from hasten.serving.openai.token_strings import TokenStrings
from hasten.serving.openai.tools import Tools
from hasten.serving.openai.usage import RunningUsage, Usage
from hasten.serving.server_state import state_of

_RENAMED = {"logprobs": "top_logprobs", "beam_width": "use_beam_search"}


async def create_chat_completion(request: Request) -> Response:
    body = await read_body(request, ChatRequest)
    num_sequences, tools = body.check(state_of(request).options), body.read_tools()
    async with AsyncExitStack() as stack:
        call = await stack.enter_async_context(open_call(request, body.model, num_sequences=num_sequences))
        chat = await ChatCompletion.open(call, body, tools)
        if body.stream:
            return await until_disconnect(request, event_response(with_end(chat.events()), stack))
        return JSONResponse(await until_disconnect(request, chat.answer()))


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The chat completion of one request."""

    call: Call
    body: ChatRequest
    prepared: PreparedChat
    params: SamplingParams
    strings: TokenStrings
    head: dict[str, Any]  # of every object
    options: dict[str, Any]  # of the engine's request

    @classmethod
    async def open(cls, call: Call, body: ChatRequest, tools: Tools) -> ChatCompletion:
        """Return the chat completion of a checked body.

        Raises ``InvalidRequest`` for a conversation that cannot run.
        """
        llm = call.llm
        has_tools = tools.definitions is not None and tools.choice != "none"
        template = None if llm.tokenizer is None else llm.tokenizer.chat_template_source(has_tools=has_tools)
        prepared = await _prepare(call, body, tools, template)
        num_prompt_tokens = len(prepared.token_ids)
        room = llm.max_model_len - num_prompt_tokens
        defaults, (given, field) = llm.default_sampling_params(), body.output_limit
        default = call.options.default_max_tokens
        max_tokens = read_max_tokens(given, field, body, num_prompt_tokens, defaults, room, default)
        renamed = _RENAMED | {"max_tokens": field}
        params = read_sampling(body, defaults, max_tokens=max_tokens, logprobs=body.num_logprobs, renamed=renamed)
        if tools.needs_grammar and params.structured_outputs is None:
            params = params.replace(structured_outputs=StructuredOutputs(grammar=prepared.answers.grammar("auto")))
        head = {
            "id": f"chatcmpl-{call.id}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": call.model.name,
            "system_fingerprint": fingerprint(call.model),
        }
        strings = await TokenStrings.open(llm.tokenizer, as_ids=body.return_tokens_as_token_ids)
        return cls(call, body, prepared, params, strings, head, engine_options(body, call))

    async def answer(self) -> dict[str, Any]:
        output = await self.call.llm.chat(self.prepared, self.params, **self.options)
        check_output(output)
        usage = Usage()
        usage.add(output)
        self.call.usage.add(output)
        choices = [complete_choice(each, self.body, self.strings) for each in output.outputs]
        found = {**self.head, "choices": choices, "usage": usage.as_dict(), **self._prompt()}
        if (top := self.body.prompt_logprobs) is not None:
            scored = await self.call.llm.prompt_logprobs({"prompt_token_ids": self.prepared.token_ids}, top)
            found["prompt_logprobs"] = prompt_logprobs(scored, self.strings)
        return found

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream, without its end."""
        body, stream_options = self.body, self.body.stream_options
        has_usage = stream_options is not None and stream_options.continuous_usage_stats
        usage, running = Usage(), RunningUsage(len(self.prepared.token_ids))
        choices = [ChoiceStream(index, body, self.strings) for index in range(body.n)]
        opening = self._prompt()
        async with aclosing(self.call.llm.stream_chat(self.prepared, self.params, **self.options)) as deltas:
            async for delta in deltas:
                check_delta(delta)
                if delta.output is not None:
                    usage.add(delta.output)
                    self.call.usage.add(delta.output)
                running.read(delta)
                if (choice := choices[delta.index].read(delta)) is None:
                    continue
                chunk = {**self.head, "choices": [choice], **opening}
                opening = {}
                if has_usage:
                    chunk["usage"] = running.as_dict()
                yield event(chunk)
        if stream_options is not None and stream_options.include_usage:
            yield event({**self.head, "choices": [], "usage": usage.as_dict()})

    def _prompt(self) -> dict[str, Any]:
        """Return what the request wants to see of the prompt, once."""
        found: dict[str, Any] = {}
        if self.body.return_token_ids:
            found["prompt_token_ids"] = list(self.prepared.token_ids)
        if self.body.return_prompt_text:
            found["prompt_text"] = self.prepared.text
        return found


async def _prepare(call: Call, body: ChatRequest, tools: Tools, template: str | None) -> PreparedChat:
    """Return the rendered conversation, which leaves room for an answer.

    Raises ``ApiError`` and ``InvalidRequest``.
    """
    max_model_len = call.llm.max_model_len
    options = {"tools": tools.definitions, "tool_choice": tools.choice, **body.template_kwargs(template)}
    try:
        prepared = await call.llm.prepare_chat(await body.messages_for(template), **options)
    except PromptTooLong as error:
        raise invalid(str(error), param="messages", code="context_length_exceeded") from None
    if (length := len(prepared.token_ids)) >= max_model_len:
        message = f"the messages have {length} tokens; allowed: up to {max_model_len - 1}, so that an answer fits the context"
        raise invalid(message, param="messages", code="context_length_exceeded")
    return prepared
