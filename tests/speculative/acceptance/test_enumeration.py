"""Both lossless rules by exhaustion: every way that drafts, verdicts and draws can fall, through ``Engine.step``.

The probabilities of what comes out add up to the model's own, whatever was guessed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.speculative.acceptance.table import Branches, Table, TableDrafter, TreeDrafter, engine, request
from torch import Tensor

from hasten.engine import verification
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import SampledToken, Sampler
from hasten.speculative.acceptance import rejection

FIRST = 1  # the answer's first token, which is not drafted


class EnumeratingSampler(Sampler):
    """Plain draws: where the path of accepted drafts may come to, every token in turn; elsewhere any."""

    __slots__ = ("branches",)

    def sample(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        if rows[0].num_output_tokens == 0:
            return [SampledToken(FIRST)]
        if not rows[0].params.exact:  # only where no draft was made does the plain draw count: see ``outcomes``
            return [SampledToken(logits_RV.shape[1])] * len(rows)
        tokens: list[SampledToken | None] = []
        path = list(rows[0].token_ids)
        for logits_V, row in zip(logits_RV.double(), rows, strict=True):
            on_path = list(row.token_ids) == path
            token = self.branches.select_rows(logits_V.softmax(0).tolist()) if on_path else 0
            tokens.append(SampledToken(token))
            path += [token] if on_path else []
        return tokens


class EnumeratedChance:
    def __init__(self, branches: Branches) -> None:
        self.branches = branches

    def bernoulli(self, probability: float) -> bool:
        probability = min(1.0, probability)
        return self.branches.select_rows([1 - probability, probability]) == 1

    def sample(self, p_V: Tensor) -> int:
        return self.branches.select_rows(p_V.tolist())


def outcomes(rule: str, table: Table, drafter: Callable[[Branches], object]) -> dict[tuple[int, ...], float]:
    """Probability of each answer of one drafted step, after the first token. A plain draw at its end is written as
    ``vocabulary``.
    """
    branches = Branches()
    sampler = EnumeratingSampler()
    object.__setattr__(sampler, "branches", branches)
    found: dict[tuple[int, ...], float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "CounterRng", lambda view: EnumeratedChance(branches))
        for _ in branches:
            running = engine(table, drafter(branches), sampler)
            running.add(request(0, (0, 1), max_tokens=20, seed=1, acceptance=rule, ignore_eos=True))
            running.step()
            (delta,) = running.step()
            found[delta.token_ids] = found.get(delta.token_ids, 0.0) + branches.weight
    return found


def spread(found: dict[tuple[int, ...], float], table: Table, length: int) -> np.ndarray:
    """The distribution of the next ``length`` tokens: what is not drawn yet is drawn from the model."""
    joint = np.zeros((table.vocabulary,) * length)
    for tokens, weight in found.items():
        begin = tuple(token for token in tokens if token < table.vocabulary)[:length]
        for rest in itertools.product(range(table.vocabulary), repeat=length - len(begin)):
            joint[(*begin, *rest)] += weight * chain_rule(table, begin, rest)
    return joint


def chain_rule(table: Table, begin: Sequence[int], rest: Sequence[int]) -> float:
    probability, text = 1.0, [0, 1, FIRST, *begin]
    for token in rest:
        probability *= float(table.probabilities(text)[token])
        text.append(token)
    return probability


def exact(table: Table, length: int) -> np.ndarray:
    return spread({(): 1.0}, table, length)


def chains(length: int, vocabulary: int, tokens: int) -> Callable[[Branches], object]:
    """Drawn from a distribution over the first ``tokens`` tokens."""
    other = Table(vocabulary, 99)
    other.logits_PV[:, :, tokens:] = -np.inf
    return lambda branches: TableDrafter(other, length, lambda request, text, q_V: branches.select_rows(q_V.tolist()))


def trees(vocabulary: int, num_nodes: int) -> Callable[[Branches], object]:
    return lambda branches: TreeDrafter(vocabulary, num_nodes)


def error(rule: str, vocabulary: int, length: int, drafter: Callable[[Branches], object]) -> float:
    table = Table(vocabulary, 5)
    found = outcomes(rule, table, drafter)
    assert abs(sum(found.values()) - 1) < 1e-9
    assert max(len(tokens) for tokens in found) > 1, "no draft was ever accepted"
    return float(np.abs(spread(found, table, length + 1) - exact(table, length + 1)).max())


@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize(
    ("vocabulary", "length", "tokens"), [(2, 3, 2), (3, 3, 3), (4, 3, 3), (5, 2, 5), (8, 1, 8), (8, 2, 5), (8, 3, 2)]
)
def test_chains_of_drawn_guesses_leave_the_distribution_as_it_is(rule: str, vocabulary: int, length: int, tokens: int) -> None:
    assert error(rule, vocabulary, length, chains(length, vocabulary, tokens)) <= 1e-6


@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize(("vocabulary", "num_nodes"), [(2, 3), (3, 5), (5, 6), (8, 7)])
def test_trees_leave_the_distribution_as_it_is(rule: str, vocabulary: int, num_nodes: int) -> None:
    assert error(rule, vocabulary, 3, trees(vocabulary, num_nodes)) <= 1e-6


def test_typical_acceptance_does_not_and_so_the_test_can_tell() -> None:
    assert error("typical", 4, 2, chains(2, 4, 3)) > 0.01


def test_resampling_from_p_in_place_of_what_is_left_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "_residual", lambda p_V, token_id, draft_prob_V: p_V)
    assert error("rejection", 4, 2, chains(2, 4, 3)) > 0.01
    assert error("rejection", 3, 3, trees(3, 5)) > 0.01
