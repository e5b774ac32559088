"""``Generation``: one request to TGI's routes from its prompt to its answer, whole or as events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from hasten.core.output import CompletionOutput, Delta, RequestOutput
from hasten.core.request_fault import is_request_fault
from hasten.core.result import FinishReason
from hasten.core.sampling_params import SamplingParams
from hasten.serving.api_error import ErrorKind, as_api_error, invalid
from hasten.serving.call import Call
from hasten.serving.event_json import event_json
from hasten.serving.finite_logprob import finite_logprob
from hasten.serving.log_failure import log_failure
from hasten.serving.native.tokenization import tokenizer_of
from hasten.serving.tgi.errors import GenerationFailed, write_error
from hasten.serving.tgi.generate_request import GenerateParameters, GenerateRequest
from hasten.serving.tgi.token_reader import TokenReader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    call: Call
    inputs: str
    parameters: GenerateParameters
    token_ids: tuple[int, ...]  # of the prompt
    params: SamplingParams
    reader: TokenReader

    @classmethod
    async def open(cls, call: Call, body: GenerateRequest, *, streams: bool) -> Generation:
        """Check a request and tokenise its prompt. Raises ``ApiError`` and ``InvalidRequest``."""
        parameters = body.parameters
        parameters.check()
        if streams and parameters.decoder_input_details:
            raise invalid("decoder_input_details is not supported in streams", param="parameters.decoder_input_details")
        tokenizer = tokenizer_of(call.llm)
        max_model_len = call.llm.max_model_len
        if parameters.truncate is None:
            token_ids = await call.llm.encode(body.inputs)
        else:
            if parameters.truncate >= max_model_len:
                message = f"truncate is {parameters.truncate}; allowed: 1 to {max_model_len - 1}"
                raise invalid(message, param="parameters.truncate")
            token_ids = tuple((await asyncio.to_thread(tokenizer.encode, body.inputs))[-parameters.truncate :])
        room = max_model_len - len(token_ids)
        max_new_tokens = parameters.max_new_tokens or min(call.options.default_max_tokens, room)
        if max_new_tokens > room:
            message = f"inputs has {len(token_ids)} tokens and max_new_tokens is {max_new_tokens}; allowed: {max_model_len} in all"
            raise invalid(message, param="parameters.max_new_tokens", code="context_length_exceeded")
        has_logprobs = bool(streams or parameters.details or parameters.decoder_input_details)
        params = parameters.sampling_params(max_new_tokens, has_logprobs=has_logprobs)
        return cls(call, body.inputs, parameters, token_ids, params, TokenReader(tokenizer, token_ids))

    async def answer(self) -> dict[str, Any]:
        """Return the body of the response."""
        llm, salt = self.call.llm, self.call.caller.cache_salt()
        output = await llm.generate({"prompt_token_ids": self.token_ids}, self.params, cache_salt=salt)
        completion = self._checked(output)
        answer: dict[str, Any] = {"generated_text": self._shown(completion.text)}
        if not (self.parameters.details or self.parameters.decoder_input_details):
            return answer
        answer["details"] = {
            "finish_reason": _finish_reason(completion),
            "generated_tokens": len(completion.token_ids),
            "seed": self._seed(output),
            "prefill": await self._prefill() if self.parameters.decoder_input_details else [],
            **self._tokens(completion),
        }
        return answer

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield an event for each token.

        An exception before the first is raised, and a later one is the last event.
        """
        llm, salt = self.call.llm, self.call.caller.cache_salt()
        num_tokens = 0
        try:
            async with aclosing(llm.stream({"prompt_token_ids": self.token_ids}, self.params, cache_salt=salt)) as deltas:
                async for delta in deltas:
                    frames = self._frames(delta, num_tokens)
                    num_tokens += len(frames)
                    if frames:
                        yield b"".join(map(_event, frames))
        except Exception as error:
            if num_tokens == 0:
                raise
            found = as_api_error(error)
            if found is not error and found.kind is ErrorKind.INTERNAL:
                log_failure(log, error)
            yield _event(write_error(found, ""))

    def _frames(self, delta: Delta, num_tokens: int) -> list[dict[str, Any]]:
        """Return a frame for each token of a delta, which ``num_tokens`` precede.

        Raises ``ApiError`` for a failed output.
        """
        completion = None if delta.output is None else self._checked(delta.output)
        frames: list[dict[str, Any]] = []
        assert delta.logprobs is not None or not delta.token_ids, "the stream asks for log-probabilities"
        for token_id, logprob in zip(delta.token_ids, delta.logprobs or (), strict=True):
            is_last = completion is not None and num_tokens + len(frames) + 1 == len(completion.token_ids)
            token = self.reader.read(token_id, logprob.logprob, completion.text if completion is not None and is_last else None)
            frame: dict[str, Any] = {"index": num_tokens + len(frames) + 1, "token": token}
            if self.parameters.top_n_tokens:
                frame["top_tokens"] = self.reader.alternatives(logprob)
            frames.append(frame | {"generated_text": None, "details": None})
        if completion is not None and delta.output is not None:
            frames[-1]["generated_text"] = self._shown(completion.text)
            if self.parameters.details:
                frames[-1]["details"] = {
                    "finish_reason": _finish_reason(completion),
                    "generated_tokens": len(completion.token_ids),
                    "seed": self._seed(delta.output),
                    "input_length": len(self.token_ids),
                }
        return frames

    def _checked(self, output: RequestOutput) -> CompletionOutput:
        """Return the only completion, and note what it has cost. Raises ``ApiError`` if it is not complete."""
        self.call.usage.add(output)
        (completion,) = output.outputs
        if completion.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            if is_request_fault(output.error):
                raise invalid(str(output.error))
            raise GenerationFailed(output.error or "the request was cancelled")
        return completion

    def _shown(self, text: str) -> str:
        return self.inputs + text if self.parameters.return_full_text else text

    def _seed(self, output: RequestOutput) -> int | None:
        return output.seed if self.parameters.samples else None

    def _tokens(self, completion: CompletionOutput) -> dict[str, Any]:
        """Return ``tokens``, and ``top_tokens`` if they are asked for."""
        assert completion.logprobs is not None, "details ask for log-probabilities"
        last = len(completion.token_ids) - 1
        tokens = [
            self.reader.read(token_id, logprob.logprob, completion.text if i == last else None)
            for i, (token_id, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True))
        ]
        if not self.parameters.top_n_tokens:
            return {"tokens": tokens}
        return {"tokens": tokens, "top_tokens": list(map(self.reader.alternatives, completion.logprobs))}

    async def _prefill(self) -> list[dict[str, Any]]:
        """Return the tokens of the prompt. The first has no log-probability."""
        logprobs = await self.call.llm.prompt_logprobs({"prompt_token_ids": self.token_ids})
        return [
            {"id": token_id, "text": self.reader.text_of(token_id), "logprob": found and finite_logprob(found.logprob)}
            for token_id, found in zip(self.token_ids, logprobs, strict=True)
        ]


def _finish_reason(completion: CompletionOutput) -> str:
    if completion.finish_reason is FinishReason.LENGTH:
        return "length"
    return "eos_token" if completion.stop_reason is None else "stop_sequence"


def _event(value: dict[str, Any]) -> bytes:
    return f"data:{event_json(value)}\n\n".encode()
