"""Degenerate distributions: the model was almost without alternatives, or almost without preferences.

It needs the log-probabilities of the output tokens, which are those of the model's raw distribution. The mean surprise, their
negative mean, shows how far the output strays from what the model expects: sampled at temperature 1 it estimates the entropy.
Human text has a surprise of one to three nats per token (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hasten.core.result import TokenLogprob
from hasten.quality.diagnosis.observed import NOTHING, Measurement, ObservedOutput

MIN_TOKENS = 16
WINDOW = 32  # tokens; a distribution may collapse late in an output
MAX_SURPRISE = 4.0  # nats per token: as many as one of 55 equally likely tokens has
MIN_ENTROPY = 0.01  # nats per token over a window; almost every token had a probability above 0.99
MIN_SHARE = 0.5  # of the tokens; confident code has short windows like that


def measure_degenerate(output: ObservedOutput) -> Measurement:
    """Return the mean surprise in nats per token, or the share of tokens without alternatives."""
    tokens = output.logprobs
    if len(tokens) < MIN_TOKENS:
        return NOTHING
    surprises = [_bounded(-token.logprob) for token in tokens]
    surprise = math.fsum(surprises) / len(surprises)
    if surprise > MAX_SURPRISE:
        begin = next((i for i, value in enumerate(surprises) if value > MAX_SURPRISE), 0)
        return Measurement(value=surprise, is_fault=True, kind="flat", offset=begin, unit="token", details={"surprise": surprise})
    collapsed = _collapsed(tokens)
    if collapsed is not None:
        begin, share = collapsed
        is_fault = share >= MIN_SHARE
        return Measurement(value=share, is_fault=is_fault, kind="peaked", offset=begin, unit="token", details={"share": share})
    return Measurement(value=surprise, is_fault=False)


def _collapsed(tokens: Sequence[TokenLogprob]) -> tuple[int, float] | None:
    """Return where the first window without alternatives begins, and the share of tokens in such windows."""
    if len(tokens) < WINDOW:
        return None
    entropies = [_entropy(token) for token in tokens]
    total = math.fsum(entropies[:WINDOW])
    covered: set[int] = set()
    for begin in range(len(entropies) - WINDOW + 1):
        if begin:
            total += entropies[begin + WINDOW - 1] - entropies[begin - 1]
        if total / WINDOW < MIN_ENTROPY:
            covered.update(range(begin, begin + WINDOW))
    return (min(covered), len(covered) / len(tokens)) if covered else None


def _entropy(token: TokenLogprob) -> float:
    """Return a lower bound of the entropy in nats: all tokens that are not known count as one."""
    known = dict(token.top) | {token.token_id: token.logprob}
    probabilities = [math.exp(min(0.0, _bounded_log(logprob))) for logprob in known.values()]
    rest = max(0.0, 1 - math.fsum(probabilities))
    return math.fsum(-p * math.log(p) for p in (*probabilities, rest) if p > 0)


def _bounded(surprise: float) -> float:
    """Return a finite surprise; impossible tokens, which a bias can force, count as 50 nats."""
    return min(50.0, max(0.0, surprise)) if surprise == surprise else 0.0


def _bounded_log(logprob: float) -> float:
    return max(-50.0, logprob) if logprob == logprob else -50.0
