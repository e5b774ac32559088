"""``StoredResult``: the answers of a request as the result cache keeps them, and their bytes.

The bytes carry the key and a SHA-256 over key and content, so that a damaged value, or one that belongs to another key, is found::

    [ magic 8 ][ key 32 ][ SHA-256 of key and content 32 ][ content: JSON ]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.caching.base import KEY_BYTES
from hasten.core.output import CompletionOutput, Delta, RequestMetrics, RequestOutput
from hasten.core.request import Request
from hasten.core.result import FinishReason, TokenLogprob, TokenOrigin

MAGIC = b"hasten\x00\x01"
_HEADER = len(MAGIC) + KEY_BYTES + 32
_KEPT = (FinishReason.STOP, FinishReason.LENGTH)
_PARSED = ("reasoning", "tool_calls", "warnings")  # what chat reads from the text afterwards
_ORIGINS = "".join(origin[0] for origin in TokenOrigin)  # one letter per origin
_ORIGIN_OF = dict(zip(_ORIGINS, TokenOrigin, strict=True))


class DamagedResult(Exception):
    """The bytes are no result of this key."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """The answers of one request, and how they were streamed.

    ``deltas``: (index of the answer, characters, tokens) per delta.
    """

    outputs: tuple[CompletionOutput, ...]
    deltas: tuple[tuple[int, int, int], ...]

    @property
    def num_tokens(self) -> int:
        """How many tokens it holds: those of the answers, and the top ones of their log-probabilities."""
        return sum(len(each.token_ids) + sum(len(token.top) for token in each.logprobs or ()) for each in self.outputs)

    @classmethod
    def of(cls, deltas: Sequence[Delta]) -> StoredResult | None:
        """Return the result of these deltas; None for errors and aborts, which are never stored."""
        output = deltas[-1].output if deltas else None
        if output is None or output.error is not None or not output.outputs:
            return None
        if any(completion.finish_reason not in _KEPT for completion in output.outputs):
            return None
        return cls(output.outputs, tuple((delta.index, len(delta.text), len(delta.token_ids)) for delta in deltas))

    def output(self, request: Request, now: float) -> RequestOutput:
        """Return the output of a request that this result answers. ``now`` is on the engine's clock."""
        return RequestOutput(
            request_id=request.request_id,
            prompt=None,
            prompt_token_ids=request.prompt_token_ids,
            outputs=self.outputs,
            finished=True,
            seed=request.params.seed,
            metrics=RequestMetrics(
                arrival=request.arrival,
                first_token=now,
                finished=now,
                num_prompt_tokens=request.num_initial_tokens,
                num_output_tokens=sum(len(completion.token_ids) for completion in self.outputs),
                from_result_cache=True,
                acceptance=request.params.acceptance,
            ),
        )

    def replay(self, request: Request, now: float) -> Iterator[Delta]:
        """Yield the deltas as they were streamed when the result was computed."""
        by_index = {completion.index: completion for completion in self.outputs}
        positions = dict.fromkeys(by_index, (0, 0))
        last_of = {index: number for number, (index, _, _) in enumerate(self.deltas)}
        for number, (index, num_chars, num_tokens) in enumerate(self.deltas):
            completion, (char, token) = by_index[index], positions[index]
            positions[index] = char_end, token_end = char + num_chars, token + num_tokens
            is_last = last_of[index] == number
            yield Delta(
                request_id=request.request_id,
                index=index,
                text=completion.text[char:char_end],
                token_ids=completion.token_ids[token:token_end],
                logprobs=None if completion.logprobs is None else completion.logprobs[token:token_end],
                finish_reason=completion.finish_reason if is_last else None,
                stop_reason=completion.stop_reason if is_last else None,
                origins=completion.origins[token:token_end],
                output=self.output(request, now) if number == len(self.deltas) - 1 else None,
            )


def encode_result(key: bytes, result: StoredResult) -> bytes:
    """Return the bytes of a result for the store."""
    content = {"outputs": [_completion_as_json(completion) for completion in result.outputs], "deltas": result.deltas}
    encoded = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return b"".join((MAGIC, key, hashlib.sha256(key + encoded).digest(), encoded))


def decode_result(key: bytes, value: bytes) -> StoredResult:
    """Return the result of ``encode_result``. Raises ``DamagedResult`` for any other bytes."""
    checksum, encoded = value[len(MAGIC) + KEY_BYTES : _HEADER], value[_HEADER:]
    if value[: len(MAGIC)] != MAGIC:
        raise DamagedResult("it was not written by this version of hasten")
    if value[len(MAGIC) : len(MAGIC) + KEY_BYTES] != key:
        raise DamagedResult("it belongs to another key")
    if hashlib.sha256(key + encoded).digest() != checksum:
        raise DamagedResult("its checksum is wrong")
    try:
        content = json.loads(encoded.decode("utf-8", "surrogatepass"))
        outputs = tuple(_completion_of_json(fields) for fields in content["outputs"])
        result = StoredResult(outputs, tuple((index, chars, tokens) for index, chars, tokens in content["deltas"]))
        _check(result)
        return result
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedResult(f"its content is not readable: {type(error).__name__}") from None


def _check(result: StoredResult) -> None:
    """Raise ``ValueError`` or ``TypeError`` for answers that could not be replayed."""
    sizes: dict[int, tuple[int, int]] = {}
    for completion in result.outputs:
        if type(completion.index) is not int or type(completion.text) is not str:
            raise TypeError
        if not all(type(token_id) is int for token_id in completion.token_ids):
            raise TypeError
        sizes[completion.index] = (len(completion.text), len(completion.token_ids))
    totals = dict.fromkeys(sizes, (0, 0))
    for index, num_chars, num_tokens in result.deltas:
        if num_chars < 0 or num_tokens < 0:
            raise ValueError
        totals[index] = (totals[index][0] + num_chars, totals[index][1] + num_tokens)
    if not sizes or len(sizes) != len(result.outputs) or totals != sizes:
        raise ValueError


def _completion_as_json(completion: CompletionOutput) -> dict[str, Any]:
    content = {field.name: getattr(completion, field.name) for field in dataclasses.fields(completion)}
    for name in _PARSED:
        del content[name]
    logprobs = completion.logprobs
    content["logprobs"] = None if logprobs is None else [[t.token_id, t.logprob, t.rank, t.top] for t in logprobs]
    content["origins"] = "".join(origin[0] for origin in completion.origins)
    return content


def _completion_of_json(content: dict[str, Any]) -> CompletionOutput:
    logprobs = content["logprobs"]
    read = {
        "token_ids": tuple(content["token_ids"]),
        "logprobs": None if logprobs is None else tuple(_logprob(*fields) for fields in logprobs),
        "finish_reason": FinishReason(content["finish_reason"]),
        "origins": tuple(_ORIGIN_OF[letter] for letter in content["origins"]),
        "exit_layers": tuple(content["exit_layers"]),
    }
    return CompletionOutput(**content | read)


def _logprob(token_id: int, logprob: float, rank: int, top: list[list[Any]]) -> TokenLogprob:
    return TokenLogprob(token_id, logprob, rank, tuple((token, value) for token, value in top))
