"""A stored result gives back the answers and the deltas; any damage to its bytes is found."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random

import pytest

from hasten.caching.stored_result import MAGIC, DamagedResult, StoredResult, decode_result, encode_result
from hasten.core.output import CompletionOutput, Delta, RequestMetrics, RequestOutput
from hasten.core.request import Request
from hasten.core.result import FinishReason, TokenLogprob, TokenOrigin
from hasten.core.sampling_params import SamplingParams

KEY = bytes(range(32))
REQUEST = Request(request_id="r", prompt_token_ids=(1, 2), params=SamplingParams(seed=3, n=2, max_tokens=9), arrival=1.5)


def stream(draw: random.Random, *, logprobs: bool) -> list[Delta]:
    """Return the deltas of a random request with two answers, as the engine gives them."""
    parts: list[list[Delta]] = []
    for index in range(2):
        deltas = []
        for number in range(count := draw.randint(1, 5)):
            token_ids = tuple(draw.randrange(1000) for _ in range(draw.randint(0, 3)))
            deltas.append(
                Delta(
                    request_id="r",
                    index=index,
                    text="".join(draw.choice(("a", "é", "你", "\n", "\0", "\ud83d")) for _ in range(draw.randint(0, 4))),
                    token_ids=token_ids,
                    logprobs=tuple(TokenLogprob(t, -draw.random(), 2, ((1, -0.1), (t, -1e-17))) for t in token_ids)
                    if logprobs
                    else None,
                    finish_reason=FinishReason.STOP if number == count - 1 else None,
                    stop_reason=draw.choice((None, 5, "x")) if number == count - 1 else None,
                    origins=tuple(draw.choice(list(TokenOrigin)) for _ in token_ids),
                )
            )
        parts.append(deltas)
    merged = []
    while any(parts):
        merged.append(draw.choice([part for part in parts if part]).pop(0))
    outputs = tuple(answer([delta for delta in merged if delta.index == index]) for index in range(2))
    metrics = RequestMetrics(arrival=1.5, num_drafts=4)
    output = RequestOutput(
        request_id="r", prompt=None, prompt_token_ids=(1, 2), outputs=outputs, finished=True, seed=3, metrics=metrics
    )
    merged[-1] = dataclasses.replace(merged[-1], output=output)
    return merged


def answer(deltas: list[Delta]) -> CompletionOutput:
    logprobs = tuple(token for delta in deltas for token in delta.logprobs or ())
    return CompletionOutput(
        index=deltas[0].index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        cumulative_logprob=sum(token.logprob for token in logprobs) if deltas[0].logprobs is not None else None,
        logprobs=logprobs if deltas[0].logprobs is not None else None,
        finish_reason=deltas[-1].finish_reason,
        stop_reason=deltas[-1].stop_reason,
        origins=tuple(origin for delta in deltas for origin in delta.origins),
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_is_stored_comes_back_as_it_was_streamed(seed: int) -> None:
    deltas = stream(random.Random(seed), logprobs=seed % 2 == 0)
    result = StoredResult.of(deltas)
    assert result is not None
    found = decode_result(KEY, encode_result(KEY, result))
    assert found == result
    replayed = list(found.replay(REQUEST, 7.0))
    assert [dataclasses.replace(d, output=None) for d in replayed] == [dataclasses.replace(d, output=None) for d in deltas]
    assert [d.origins for d in replayed] == [d.origins for d in deltas]
    output = replayed[-1].output
    assert output is not None and output == found.output(REQUEST, 7.0)
    assert output.outputs == deltas[-1].output.outputs
    assert output.metrics.from_result_cache and output.metrics.num_drafts == 0 and output.metrics.ttft == 5.5


def test_errors_and_aborts_are_never_stored() -> None:
    deltas = stream(random.Random(1), logprobs=False)
    output = deltas[-1].output
    assert output is not None

    def ending(**changes: object) -> list[Delta]:
        return [*deltas[:-1], dataclasses.replace(deltas[-1], output=dataclasses.replace(output, **changes))]

    assert StoredResult.of(ending()) is not None
    assert StoredResult.of(ending(error="broken")) is None
    for reason in (FinishReason.ABORT, FinishReason.ERROR, None):
        outputs = (output.outputs[0], dataclasses.replace(output.outputs[1], finish_reason=reason))
        assert StoredResult.of(ending(outputs=outputs)) is None
    assert StoredResult.of(deltas[:-1]) is None
    assert StoredResult.of([]) is None


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    result = StoredResult.of(stream(random.Random(2), logprobs=True))
    assert result is not None
    value = encode_result(KEY, result)
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(DamagedResult):
            decode_result(KEY, bytes(damaged))
        with pytest.raises(DamagedResult):
            decode_result(KEY, value[:position])
    with pytest.raises(DamagedResult, match="another key"):
        decode_result(bytes(32), value)


EMPTY = {"index": 0, "text": "a", "token_ids": [1], "logprobs": None, "finish_reason": "stop", "origins": "", "exit_layers": []}
FORGED = [
    {"outputs": [], "deltas": []},
    {"outputs": [{}], "deltas": []},
    {"outputs": [EMPTY], "deltas": []},
    {"outputs": [EMPTY], "deltas": [[0, 2, 1]]},
    {"outputs": [EMPTY], "deltas": [[1, 1, 1]]},
    {"outputs": [EMPTY], "deltas": [[0, 2, 1], [0, -1, 0]]},
    {"outputs": [EMPTY, EMPTY], "deltas": [[0, 1, 1]]},
    {"outputs": [EMPTY | {"text": 5}], "deltas": [[0, 1, 1]]},
    {"outputs": [EMPTY | {"token_ids": ["1"]}], "deltas": [[0, 1, 1]]},
    {"outputs": [EMPTY | {"origins": "z"}], "deltas": [[0, 1, 1]]},
    {"outputs": [EMPTY | {"unknown": 1}], "deltas": [[0, 1, 1]]},
]
NO_JSON = [b"", b"[" * 100_000, b"\x80\x04cos\nsystem\n."]


@pytest.mark.parametrize("content", [*NO_JSON, *(json.dumps(content).encode() for content in FORGED)])
def test_content_that_is_no_result_is_damage(content: bytes) -> None:
    """Also with a right checksum, which an attacker can write; a pickle is never loaded."""
    value = MAGIC + KEY + hashlib.sha256(KEY + content).digest() + content
    with pytest.raises(DamagedResult):
        decode_result(KEY, value)


def test_the_forged_contents_differ_from_a_right_one_in_one_point_each() -> None:
    """The control of the test above."""
    content = json.dumps({"outputs": [EMPTY], "deltas": [[0, 1, 1]]}).encode()
    value = MAGIC + KEY + hashlib.sha256(KEY + content).digest() + content
    assert decode_result(KEY, value).outputs[0].text == "a"
