"""Oracles: the transformers processor or a formula for each setting, and the noise in Python integers."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.sampling.rows import EOS
from transformers.generation import logits_process as hf

from hasten.sampling.row import SamplingRow

VOCAB = 97


@dataclass(frozen=True)
class Oracle:
    settings: Callable[[random.Random], dict[str, Any]]  # returns random settings
    edges: tuple[dict[str, Any], ...]
    processor: Callable[[SamplingRow], Any]


class Unchanged:
    def __call__(self, ids, scores):
        return scores


class OpenAiPenalties:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c[j] counts token j in the output."""

    def __init__(self, row: SamplingRow) -> None:
        self.count = Counter(list(row.token_ids)[row.num_prompt_tokens :])
        self.params = row.params

    def __call__(self, ids, scores):
        mu = scores[0].tolist()
        for token, count in self.count.items():
            mu[token] -= count * self.params.frequency_penalty + self.params.presence_penalty
        return torch.tensor([mu])


class Bias(hf.LogitsProcessor):
    def __init__(self, row: SamplingRow) -> None:
        biases: Any = {(i,): float(v) for i, v in row.params.logit_bias.items()}
        self.inner = hf.SequenceBiasLogitsProcessor(biases)

    def __call__(self, ids, scores):
        return self.inner(ids, scores)


def _min_tokens(row: SamplingRow):
    masked = [*row.eos_token_ids, *row.params.stop_token_ids]
    return hf.MinNewTokensLengthLogitsProcessor(row.num_prompt_tokens, row.params.min_tokens, masked)


def _bad_words(row: SamplingRow):
    words = [list(word) for word in row.params.bad_words_ids]
    if all(word in ([i] for i in row.eos_token_ids) for word in words):
        return Unchanged()  # transformers refuses a list that its own filter empties
    return hf.NoBadWordsLogitsProcessor(words, list(row.eos_token_ids))


def _allowed(row: SamplingRow):
    allowed = set(row.params.allowed_token_ids or ())
    return hf.SuppressTokensLogitsProcessor([i for i in range(VOCAB) if i not in allowed])


def _bad_words_settings(rng: random.Random) -> dict[str, Any]:
    words = {tuple(rng.randrange(12) for _ in range(rng.choice((1, 2, 2, 3, 60)))) for _ in range(rng.randrange(1, 40))}
    return {"bad_words_ids": tuple(words)}


def _min_tokens_settings(rng: random.Random) -> dict[str, Any]:
    return {"min_tokens": rng.randrange(1, 30), "stop_token_ids": tuple(rng.sample(range(VOCAB), rng.randrange(4)))}


ORACLES: dict[str, Oracle] = {
    "allowed_token_ids": Oracle(
        lambda rng: {"allowed_token_ids": tuple(rng.sample(range(VOCAB), rng.randrange(1, 30)))},
        ({"allowed_token_ids": (VOCAB - 1,)}, {"allowed_token_ids": tuple(range(VOCAB))}),
        _allowed,
    ),
    "min_tokens": Oracle(_min_tokens_settings, ({"min_tokens": 1}, {"min_tokens": 10_000}), _min_tokens),
    "bad_words": Oracle(
        _bad_words_settings, ({"bad_words_ids": ((EOS[0],),)}, {"bad_words_ids": ((VOCAB - 1,), (0, 1))}), _bad_words
    ),
    "no_repeat_ngram": Oracle(
        lambda rng: {"no_repeat_ngram_size": rng.randrange(1, 5)},
        ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1000}),
        lambda row: hf.NoRepeatNGramLogitsProcessor(row.params.no_repeat_ngram_size or 0),
    ),
    "logit_bias": Oracle(
        lambda rng: {"logit_bias": {rng.randrange(VOCAB): rng.uniform(-100, 100) for _ in range(rng.randrange(1, 20))}},
        ({"logit_bias": {VOCAB - 1: 100}}, {"logit_bias": {0: -100}}),
        Bias,
    ),
    "repetition_penalty": Oracle(
        lambda rng: {"repetition_penalty": rng.uniform(0.5, 2.0)},
        ({"repetition_penalty": 1e-3}, {"repetition_penalty": 1e3}),
        lambda row: hf.RepetitionPenaltyLogitsProcessor(float(row.params.repetition_penalty)),
    ),
    "presence_penalty": Oracle(
        lambda rng: {"presence_penalty": rng.uniform(-2, 2) or 1.0},
        ({"presence_penalty": 2.0}, {"presence_penalty": -2.0}),
        OpenAiPenalties,
    ),
    "frequency_penalty": Oracle(
        lambda rng: {"frequency_penalty": rng.uniform(-2, 2) or 1.0},
        ({"frequency_penalty": 2.0}, {"frequency_penalty": -2.0}),
        OpenAiPenalties,
    ),
    "temperature": Oracle(
        lambda rng: {"temperature": rng.uniform(0.05, 3.0)},
        ({"temperature": 1e-3}, {"temperature": 1e3}),
        lambda row: hf.TemperatureLogitsWarper(float(row.params.temperature)),
    ),
    "top_k": Oracle(
        lambda rng: {"top_k": rng.randrange(1, VOCAB)},
        ({"top_k": 1}, {"top_k": VOCAB}, {"top_k": VOCAB + 7}),
        lambda row: hf.TopKLogitsWarper(row.params.top_k or 0),
    ),
    "top_p": Oracle(
        lambda rng: {"top_p": rng.uniform(0.01, 0.999)},
        ({"top_p": 1e-9}, {"top_p": 1 - 1e-6}, {"top_p": 1 - 1e-12}),
        lambda row: hf.TopPLogitsWarper(row.params.top_p),
    ),
    "min_p": Oracle(
        lambda rng: {"min_p": rng.uniform(0.001, 1.0)},
        ({"min_p": 1.0}, {"min_p": 1e-30}),
        lambda row: hf.MinPLogitsWarper(float(row.params.min_p)),
    ),
    "typical_p": Oracle(
        lambda rng: {"typical_p": rng.uniform(0.01, 0.999)},
        ({"typical_p": 1e-9}, {"typical_p": 1 - 1e-9}),
        lambda row: hf.TypicalLogitsWarper(row.params.typical_p),
    ),
}


def noise_bits_formula(row: SamplingRow, token: int) -> int:
    """Return the 52 bits of ``hasten.sampling.noise`` in Python integers, which share no code with it."""
    z = _splitmix64(row.params.seed + 0x9E3779B97F4A7C15)
    z = _splitmix64(z + (row.sequence_index + 1) * 0xC13FA9A902A6328F)
    z = _splitmix64(z + (len(row.token_ids) + 1) * 0xD1B54A32D192ED03)
    return _splitmix64(z + (token + 1) * 0x9E3779B97F4A7C15) >> 12


def gumbel_noise_formula(row: SamplingRow, token: int) -> float:
    return -math.log(-math.log((noise_bits_formula(row, token) + 0.5) / 2**52))


def _splitmix64(z: int) -> int:
    mask = (1 << 64) - 1
    z &= mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)
