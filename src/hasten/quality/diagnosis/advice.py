"""Which setting to turn next: temperature, then top-k and top-p, then penalties, then other limits.

Each fault has its candidates in that order. The first one that is not set already, takes effect and is valid with the other
settings is the advice. Penalties far above their usual range are a cause rather than a cure, so they are lowered first. Values:
temperature 0.7 to 0.8 for free text, 0.3 for facts; top-p 0.9 to 0.95 (Holtzman et al., 2020); repetition penalty 1.1 (Keskar et
al., 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import MAX_TOKENS, SamplingParams
from hasten.quality.diagnosis.finding import Advice, Fault
from hasten.quality.diagnosis.observed import Measurement, ObservedOutput

Candidate = tuple[str, Any]  # a field of SamplingParams, and the value to try

USUAL_REPETITION_PENALTY = 1.3  # at most
USUAL_PENALTY = 1.0  # presence and frequency penalty, at most
MAX_STOP = 16  # stop strings that advice adds to
ROOM, MIN_ROOM = 4, 128  # a limit above what an output needs costs nothing
TOKENS_PER_WORD, MIN_ANSWER = 1.5, 32


def advise(fault: Fault, found: Measurement, output: ObservedOutput) -> Advice | None:
    """Return the change to try next; None where every candidate is turned already."""
    params = output.params
    for name, value in _candidates(fault, found, output):
        if name in ("max_model_len", "prompt", "encoding"):
            return Advice(name)
        now = getattr(params, name)
        try:
            changed = params.replace(**{name: value})
        except InvalidRequest:  # it does not go with the other settings
            continue
        if getattr(changed, name) != now:
            return Advice(name, getattr(changed, name), now)
    return None


def _candidates(fault: Fault, found: Measurement, output: ObservedOutput) -> Iterator[Candidate]:
    params = output.params
    if fault == "prompt_order":
        yield "prompt", None
    elif fault == "repetition":
        yield from _more_variety(params)
        yield from _end_at(found, output)
    elif fault == "degenerate":
        yield from _more_variety(params) if found.kind == "peaked" else _less_variety(params)
    elif fault == "mixed_scripts":
        if found.kind == "mojibake":
            yield "encoding", None
            return
        yield from _less_variety(params)
        if found.kind == "splice" and (quote := str(found.details["quote"])) not in params.bad_words:
            yield "bad_words", (*params.bad_words, quote)
    elif fault == "truncation":
        yield from _room(output)
    elif fault == "too_short":
        yield from _longer(found, output)
    else:
        yield from _shorter(found, output)


def _more_variety(params: SamplingParams) -> Iterator[Candidate]:
    """For loops: nearer to the model's own distribution, then penalties that grow stronger."""
    if params.beam_width is not None:  # the best of many beams outweighs a soft penalty (Paulus et al., 2018)
        yield from _no_repeats(params)
    else:
        if params.temperature < 0.7:
            yield "temperature", 0.8
        if params.top_k is not None and params.top_k < 40:
            yield "top_k", 50
        if params.top_p < 0.9:
            yield "top_p", 0.95
    if params.repetition_penalty < 1.1:
        yield "repetition_penalty", 1.1
    if params.frequency_penalty < 0.5:
        yield "frequency_penalty", 0.5
    yield from _no_repeats(params)


def _no_repeats(params: SamplingParams) -> Iterator[Candidate]:
    size = params.no_repeat_ngram_size
    if size is None or size > 3:
        yield "no_repeat_ngram_size", 4 if size is None or size > 4 else 3


def _less_variety(params: SamplingParams) -> Iterator[Candidate]:
    """For unlikely tokens: undo what favours them, cool down, then cut the tail."""
    excessive = params.repetition_penalty > USUAL_REPETITION_PENALTY
    if excessive and (params.beam_width is not None or params.temperature <= 1):
        yield "repetition_penalty", 1.1
    if params.beam_width is None and not params.greedy:
        if params.temperature > 0.7:
            yield "temperature", 0.7
        if params.top_k is None or params.top_k > 50:
            yield "top_k", 50
        if params.top_p > 0.9:
            yield "top_p", 0.9
        if params.min_p < 0.05:
            yield "min_p", 0.05
        if params.temperature > 0.3:
            yield "temperature", 0.3
    if params.repetition_penalty > 1.1:
        yield "repetition_penalty", 1.1
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(params, name) > 0.3:
            yield name, 0.3


def _end_at(found: Measurement, output: ObservedOutput) -> Iterator[Candidate]:
    """The last resort against a loop: end the output where it begins."""
    if found.unit == "token" and found.offset and found.offset > params_floor(output):
        yield "max_tokens", found.offset


def params_floor(output: ObservedOutput) -> int:
    """Return how many tokens an output must have at least."""
    return max(1, output.params.min_tokens)


def _room(output: ObservedOutput) -> Iterator[Candidate]:
    """For an output that was cut: without the stop string that cut it, or with more tokens."""
    params = output.params
    if output.finish_reason == "stop":
        yield from _without_stop(output)
        yield from _at_least(2 * _num_tokens(output), output)
        return
    if params.max_tokens is not None:
        yield "max_tokens", min(MAX_TOKENS, max(MIN_ROOM, ROOM * params.max_tokens))
    else:
        yield "max_model_len", None


def _longer(found: Measurement, output: ObservedOutput) -> Iterator[Candidate]:
    params = output.params
    yield from _without_stop(output)
    if params.beam_width is not None and params.length_penalty < 2:
        yield "length_penalty", 1.0 if params.length_penalty < 1 else params.length_penalty + 0.5
    asked = found.details.get("asked", 0)
    assert not isinstance(asked, str)
    per_unit = 20 if found.details.get("unit") == "sentences" else TOKENS_PER_WORD
    yield from _at_least(max(MIN_ANSWER, math.ceil(asked * per_unit)), output)


def _shorter(found: Measurement, output: ObservedOutput) -> Iterator[Candidate]:
    params = output.params
    if params.beam_width is not None and found.kind == "asked_less" and params.length_penalty > 0:
        yield "length_penalty", max(0.0, params.length_penalty - 0.5)
    if params.ignore_eos:
        yield "ignore_eos", False
    stop = found.details.get("stop")
    if isinstance(stop, str) and stop not in params.stop and len(params.stop) < MAX_STOP:
        yield "stop", (*params.stop, stop)
    limit = _tokens_before(found, output)
    if limit is not None and (params.max_tokens is None or limit < params.max_tokens):
        yield "max_tokens", limit


def _without_stop(output: ObservedOutput) -> Iterator[Candidate]:
    """Yield the stop strings without the one that ended the output, or none if it is unknown."""
    params = output.params
    if params.stop and (isinstance(output.stop_reason, str) or output.stop_reason is None):
        yield "stop", tuple(stop for stop in params.stop if output.stop_reason is not None and stop != output.stop_reason)


def _at_least(num_tokens: int, output: ObservedOutput) -> Iterator[Candidate]:
    params = output.params
    if params.max_tokens is not None and params.max_tokens < num_tokens:
        yield "max_tokens", num_tokens
    if params.min_tokens < num_tokens and params.structured_outputs is None:  # a form that is complete has no further token
        yield "min_tokens", num_tokens


def _tokens_before(found: Measurement, output: ObservedOutput) -> int | None:
    """Return about how many tokens the wanted part of the output has."""
    asked = found.details.get("asked")
    if asked is not None and not isinstance(asked, str):
        per_unit = 30 if found.details.get("unit") == "sentences" else TOKENS_PER_WORD
        return max(params_floor(output), math.ceil(asked * per_unit))
    if not found.offset:
        return None
    return max(params_floor(output), round(_num_tokens(output) * found.offset / max(1, len(output.text))))


def _num_tokens(output: ObservedOutput) -> int:
    """Return the number of tokens of the output; four characters are about one."""
    return len(output.token_ids) or max(1, len(output.text) // 4)
