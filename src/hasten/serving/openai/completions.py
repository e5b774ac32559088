"""``POST /v1/completions``: texts that go on from prompts."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.core.errors import InvalidRequest
from hasten.core.output import CompletionOutput, Delta, RequestOutput
from hasten.core.result import TokenLogprob
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.api_error import as_api_error, invalid
from hasten.serving.call import Call, open_call
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.openai.completion_request import CompletionRequest, Prompt
from hasten.serving.openai.concurrent import gather_all, merge
from hasten.serving.openai.events import event, with_end
from hasten.serving.openai.fingerprint import fingerprint
from hasten.serving.openai.finish import check_delta, check_output, finish_reason
from hasten.serving.openai.logprobs import CompletionLogprobs, prompt_logprobs
from hasten.serving.openai.sampling import engine_options, read_max_tokens, read_sampling
from hasten.serving.openai.token_strings import TokenStrings
from hasten.serving.openai.usage import RunningUsage, Usage
from hasten.serving.server_state import state_of


async def create_completion(request: Request) -> Response:
    body = await read_body(request, CompletionRequest)
    num_sequences = body.check(state_of(request).options)
    async with AsyncExitStack() as stack:
        call = await stack.enter_async_context(open_call(request, body.model, num_sequences=num_sequences))
        completions = await Completions.open(call, body)
        if body.stream:
            return await until_disconnect(request, event_response(with_end(completions.events()), stack))
        return JSONResponse(await until_disconnect(request, completions.answer()))


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt as the engine takes it. ``params`` None: it is scored and nothing is generated."""

    token_ids: tuple[int, ...]
    echo: str  # the text that answers begin with
    has_special: bool  # whether that text has the prompt's special tokens
    params: SamplingParams | None


class Completions:
    """The completions of one request."""

    def __init__(self, call: Call, body: CompletionRequest, prompts: list[_Prompt], strings: TokenStrings) -> None:
        self._call, self._body, self._prompts, self._strings = call, body, prompts, strings
        self._head = {
            "id": f"cmpl-{call.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": call.model.name,
            "system_fingerprint": fingerprint(call.model),
        }

    @classmethod
    async def open(cls, call: Call, body: CompletionRequest) -> Completions:
        """Return the completions of a body that is checked. Raises what a prompt that cannot run raises."""
        prompts = [await _read_prompt(call, body, prompt) for prompt in await body.prompts()]
        skips = body.skip_special_tokens is not False
        strings = await TokenStrings.open(call.llm.tokenizer, as_ids=body.return_tokens_as_token_ids, skip_special_tokens=skips)
        return cls(call, body, prompts, strings)

    async def answer(self) -> dict[str, Any]:
        """Return the completions of all prompts."""
        found = await gather_all([self._generate(prompt) for prompt in self._prompts])
        usage = Usage()
        choices: list[dict[str, Any]] = []
        for prompt, (output, logprobs) in zip(self._prompts, found, strict=True):
            if output is None:
                usage.prompt_tokens += len(prompt.token_ids)
            else:
                usage.add(output)
                self._call.usage.add(output)
            choices += self._choices(prompt, output, logprobs, first=len(choices))
        return self._chunk(choices) | {"usage": usage.as_dict()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream, without its end."""
        options = self._body.stream_options
        usage, running = Usage(), RunningUsage(sum(len(prompt.token_ids) for prompt in self._prompts))
        writers: dict[tuple[int, int], _ChoiceWriter] = {}
        scored = [await self._score(prompt) for prompt in self._prompts]
        async for number, delta in self._deltas():
            check_delta(delta)
            key = (number, delta.index)
            if (writer := writers.get(key)) is None:
                index = number * self._body.n + delta.index
                writer = writers[key] = _ChoiceWriter(self, self._prompts[number], index, scored[number])
            if delta.output is not None:
                usage.add(delta.output)
                self._call.usage.add(delta.output)
            running.read(delta)
            if (choice := writer.choice(delta)) is not None:
                chunk = self._chunk([choice])
                if options is not None and options.continuous_usage_stats:
                    chunk["usage"] = running.as_dict()
                yield event(chunk)
        for number, prompt in enumerate(self._prompts):
            if prompt.params is None:
                usage.prompt_tokens += len(prompt.token_ids)
                yield event(self._chunk(self._choices(prompt, None, scored[number], first=number * self._body.n)))
        if options is not None and options.include_usage:
            yield event(self._chunk([]) | {"usage": usage.as_dict()})

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Yield the deltas of all prompts that go on, each with the number of its prompt."""
        running = [number for number, prompt in enumerate(self._prompts) if prompt.params is not None]
        if not running:
            return
        llm, options = self._call.llm, self._options()
        streams = [llm.stream(_ids(self._prompts[each]), self._prompts[each].params, **options) for each in running]
        async with aclosing(merge(streams)) as merged:
            async for place, delta in merged:
                yield running[place], delta

    async def _generate(self, prompt: _Prompt) -> tuple[RequestOutput | None, list[TokenLogprob | None]]:
        output = None
        if prompt.params is not None:
            output = await self._call.llm.generate(_ids(prompt), prompt.params, **self._options())
            check_output(output)
        return output, await self._score(prompt)

    def _options(self) -> dict[str, Any]:
        return engine_options(self._body, self._call)

    async def _score(self, prompt: _Prompt) -> list[TokenLogprob | None]:
        """Return the log-probabilities of a prompt's tokens; empty if the request asks for none."""
        top = self._body.num_prompt_logprobs
        if top is None:
            return []
        return list(await self._call.llm.prompt_logprobs(_ids(prompt), top))

    def _choices(
        self, prompt: _Prompt, output: RequestOutput | None, scored: list[TokenLogprob | None], first: int
    ) -> list[dict[str, Any]]:
        """Return the complete choices of a prompt; their indices begin with ``first``."""
        nothing = [CompletionOutput(index=index, text="", token_ids=()) for index in range(self._body.n)]
        return [
            _ChoiceWriter(self, prompt, first + each.index, scored).complete(each)
            for each in (nothing if output is None else output.outputs)
        ]

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices}


class _ChoiceWriter:
    """Writes one choice, at once or in deltas. The first has what echoes the prompt."""

    def __init__(self, completions: Completions, prompt: _Prompt, index: int, scored: list[TokenLogprob | None]) -> None:
        self._body, self._strings = completions._body, completions._strings
        self._prompt, self._index, self._scored = prompt, index, scored
        self._logprobs = None if self._body.logprobs is None else CompletionLogprobs(self._strings)
        self._is_first = True

    def complete(self, completion: CompletionOutput) -> dict[str, Any]:
        found = self._write(completion.text, completion.token_ids, completion.logprobs)
        reason = finish_reason(completion.finish_reason) or "length"  # nothing was generated
        return found | {"finish_reason": reason, "stop_reason": completion.stop_reason}

    def choice(self, delta: Delta) -> dict[str, Any] | None:
        """Return the choice of a chunk; None if the delta adds nothing that was asked for."""
        is_wanted = delta.text or delta.finish_reason is not None or (self._is_first and self._body.echo)
        if not is_wanted and not self._body.return_token_ids and not (delta.logprobs and self._logprobs is not None):
            return None
        found = self._write(delta.text, delta.token_ids, delta.logprobs)
        found["finish_reason"] = finish_reason(delta.finish_reason)
        if delta.finish_reason is not None:
            found["stop_reason"] = delta.stop_reason
        return found

    def _write(self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...] | None) -> dict[str, Any]:
        body, prompt = self._body, self._prompt
        tokens: list[tuple[int, TokenLogprob | None]] = [(each.token_id, each) for each in logprobs or ()]
        found: dict[str, Any] = {"index": self._index, "text": text}
        if self._is_first and body.echo:
            found["text"] = prompt.echo + text
            if self._logprobs is not None:
                tokens = [*zip(prompt.token_ids, self._scored, strict=True), *tokens]
        num_echoed = len(tokens) - len(logprobs or ()) if prompt.has_special else 0
        found["logprobs"] = None if self._logprobs is None else self._logprobs.read(tokens, num_echoed)
        if self._is_first and body.prompt_logprobs is not None:
            found["prompt_logprobs"] = prompt_logprobs(self._scored, self._strings)
        if body.return_token_ids:
            found["token_ids"] = list(token_ids)
            if self._is_first:
                found["prompt_token_ids"] = list(prompt.token_ids)
        self._is_first = False
        return found


async def _encode(llm: AsyncLLM, body: CompletionRequest, prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of a prompt. Raises ``ApiError``."""
    try:
        if not isinstance(prompt, str):
            return await llm.encode({"prompt_token_ids": prompt})
        token_ids = await llm.encode(prompt)
        if body.add_special_tokens or llm.tokenizer is None:
            return token_ids
        return await llm.encode({"prompt_token_ids": llm.tokenizer.encode(prompt, add_special_tokens=False)})
    except InvalidRequest as error:
        raise invalid(str(error), param="prompt", code=as_api_error(error).code) from None


async def _read_prompt(call: Call, body: CompletionRequest, prompt: Prompt) -> _Prompt:
    llm = call.llm
    token_ids = await _encode(llm, body, prompt)
    echo, has_special = "", False
    if body.echo:
        if llm.tokenizer is None:
            raise invalid("this model has no tokenizer, so it cannot echo a prompt", param="echo")
        decoded = llm.tokenizer.decode(token_ids, skip_special_tokens=False)
        echo = prompt if isinstance(prompt, str) else decoded
        has_special = echo == decoded
    defaults = llm.default_sampling_params()
    room = llm.max_model_len - len(token_ids)
    default = call.options.default_max_tokens
    given = 1 if body.is_score_only else body.max_tokens  # the settings are checked all the same
    max_tokens = read_max_tokens(given, "max_tokens", body, len(token_ids), defaults, room, default)
    renamed = {"beam_width": "use_beam_search"}
    params = read_sampling(body, defaults, max_tokens=max_tokens, logprobs=body.logprobs, renamed=renamed)
    return _Prompt(token_ids, echo, has_special, None if body.is_score_only else params)


def _ids(prompt: _Prompt) -> dict[str, Any]:
    return {"prompt_token_ids": prompt.token_ids}
