"""Tokens drawn with drafts on, counted: three in a row are distributed as the model and the settings say, by either lossless
rule.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from tests.exhaustive import repeats
from tests.sampling.chi_square import MIN_P_VALUE, p_value
from tests.speculative.acceptance.table import Table, TableDrafter, TreeDrafter, by_formula, engine, request
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.chain import PROCESSORS, Chain
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.sampling.token_selector import TorchTokenSelector
from hasten.speculative.acceptance import counter_rng

VOCABULARY, PROMPT, LENGTH = 6, (3, 1), 4
ANSWERS = repeats("acceptance")  # of four tokens
SETTINGS = {
    "temperature": 0.9,
    "top_k": 5,
    "top_p": 0.97,
    "repetition_penalty": 1.15,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.1,
}


class NoTokenTwice:
    """A mask that follows the text, as a grammar's automaton does: never the token before, and 5 only after 0."""

    def applies(self, params: SamplingParams) -> bool:
        return True

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        for row, logits_V in zip(rows, logits_RV, strict=True):
            logits_V[[token for token in range(VOCABULARY) if token not in allowed(row.token_ids)]] = -torch.inf
        return logits_RV


def allowed(text: Sequence[int]) -> list[int]:
    return [token for token in range(VOCABULARY) if token != text[-1] and (token != 5 or text[-1] == 0)]


def joint(table: Table) -> Tensor:
    """Of the answer's tokens 1, 2 and 3, by the formula. [V, V, V]"""
    params = SamplingParams.from_dict(SETTINGS)
    probs = torch.zeros(VOCABULARY, VOCABULARY, VOCABULARY, dtype=torch.float64)
    for tokens in itertools.product(range(VOCABULARY), repeat=LENGTH):
        probability, text = 1.0, list(PROMPT)
        for token in tokens:
            probability *= by_formula(table, text, len(PROMPT), params, allowed(text))[token] if probability else 0.0
            text.append(token)
        probs[tokens[1:]] += probability
    return probs


def drawn(table: Table, rule: str, drafter: object, answers: int) -> tuple[Tensor, int]:
    """The tokens of all answers [answer, token], and how many of them had been guessed."""
    sampler = Sampler(TorchTokenSelector(Chain(processors=(NoTokenTwice(), *PROCESSORS))))
    running = engine(table, drafter, sampler)
    tokens: list[tuple[int, ...]] = []
    number = 0
    while len(tokens) < answers:
        while running.scheduler.num_waiting < 2:
            settings = {**SETTINGS, "n": 32, "seed": 1000 + number, "acceptance": rule, "max_tokens": LENGTH}
            running.add(request(number, PROMPT, **settings))
            number += 1
        for delta in running.step():
            if delta.output is not None:
                tokens += [answer.token_ids for answer in delta.output.outputs]
    return torch.tensor(tokens[:answers]), running.stats.num_accepted_tokens


def judged(rule: str, drafter: object, answers: int = ANSWERS) -> float:
    table = Table(VOCABULARY, 21)
    tokens, num_accepted = drawn(table, rule, drafter, answers)
    assert num_accepted > 0.3 * answers
    expected = joint(table).flatten()
    cells = (tokens[:, 1] * VOCABULARY + tokens[:, 2]) * VOCABULARY + tokens[:, 3]
    possible = expected > 0
    assert possible[cells].all(), "a token was drawn that cannot be"
    place = possible.cumsum(0) - 1
    return p_value(place[cells], expected[possible])


def chains() -> TableDrafter:
    """Guesses of a table near the model's, drawn from numbers of their own."""
    near = Table(VOCABULARY, 21)
    near.logits_PV = near.logits_PV + Table(VOCABULARY, 22).logits_PV * 0.5
    draw = random.Random(8)
    return TableDrafter(near, 3, lambda request, text, q_V: draw.choices(range(VOCABULARY), q_V.tolist())[0])


@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_drafted_chains(rule: str) -> None:
    assert judged(rule, chains()) > MIN_P_VALUE


@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_drafted_trees(rule: str) -> None:
    assert judged(rule, TreeDrafter(VOCABULARY, 6), ANSWERS // 5) > MIN_P_VALUE


def test_noise_without_the_position_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token alone is as likely as it should be, three in a row are not."""
    monkeypatch.setattr(SamplingRow, "position", property(lambda self: 7))
    assert judged("exact", chains(), 4000) < MIN_P_VALUE


def test_verdicts_that_always_fall_the_same_way_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_rng, "noise_bits", lambda streams, tokens: torch.tensor(1 << 40))
    assert judged("rejection", chains(), 4000) < MIN_P_VALUE
