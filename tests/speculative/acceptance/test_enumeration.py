"""Both lossless acceptance rules by exhaustive enumeration of all random choices in ``Engine.step``.

Summed over all outcomes, the output has the model's own distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.speculative.acceptance.table_model import Branches, TableDrafter, TableModel, TreeDrafter, make_engine, make_request
from torch import Tensor

from hasten.engine import verification
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import SampledToken, Sampler
from hasten.speculative.acceptance import rejection

FIRST_TOKEN = 1  # of the output; it is not drafted


class EnumeratingSampler(Sampler):
    """A sampler that branches into every token on the accepted path, and returns token 0 elsewhere."""

    __slots__ = ("branches",)

    def sample(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        if rows[0].num_output_tokens == 0:
            return [SampledToken(FIRST_TOKEN)]
        if not rows[0].params.exact:  # stands for a sample of the model: see ``outcomes``
            return [SampledToken(logits_RV.shape[1])] * len(rows)
        tokens: list[SampledToken | None] = []
        path = list(rows[0].token_ids)
        for logits_V, row in zip(logits_RV.double(), rows, strict=True):
            on_path = list(row.token_ids) == path
            token = self.branches.choose(logits_V.softmax(0).tolist()) if on_path else 0
            tokens.append(SampledToken(token))
            path += [token] if on_path else []
        return tokens


class EnumeratedRng:
    """A ``CounterRng`` that branches into every outcome."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches

    def bernoulli(self, probability: float) -> bool:
        probability = min(1.0, probability)
        return self.branches.choose([1 - probability, probability]) == 1

    def sample(self, p_V: Tensor) -> int:
        return self.branches.choose(p_V.tolist())


def outcomes(rule: str, model: TableModel, drafter: Callable[[Branches], object]) -> dict[tuple[int, ...], float]:
    """Return the probability of each output of one step with drafts.

    The token ``vocab_size`` at the end of an output stands for a token that is sampled from the model.
    """
    branches = Branches()
    sampler = EnumeratingSampler()
    object.__setattr__(sampler, "branches", branches)
    found: dict[tuple[int, ...], float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "CounterRng", lambda row: EnumeratedRng(branches))
        for _ in branches:
            engine = make_engine(model, drafter(branches), sampler)
            engine.add(make_request(0, (0, 1), max_tokens=20, seed=1, acceptance=rule, ignore_eos=True))
            engine.step()
            (delta,) = engine.step()
            found[delta.token_ids] = found.get(delta.token_ids, 0.0) + branches.weight
    return found


def next_token_probs(found: dict[tuple[int, ...], float], model: TableModel, length: int) -> np.ndarray:
    """Return the joint distribution of ``length`` tokens; the model samples those after an outcome."""
    joint = np.zeros((model.vocab_size,) * length)
    for tokens, weight in found.items():
        start = tuple(token for token in tokens if token < model.vocab_size)[:length]
        for rest in itertools.product(range(model.vocab_size), repeat=length - len(start)):
            joint[(*start, *rest)] += weight * continuation_prob(model, start, rest)
    return joint


def continuation_prob(model: TableModel, start: Sequence[int], rest: Sequence[int]) -> float:
    probability, prefix = 1.0, [0, 1, FIRST_TOKEN, *start]
    for token in rest:
        probability *= float(model.probabilities(prefix)[token])
        prefix.append(token)
    return probability


def chain_drafter(length: int, vocab_size: int, num_drafted: int) -> Callable[[Branches], object]:
    """Return a factory of drafters that sample from the first ``num_drafted`` tokens of the vocabulary."""
    draft_model = TableModel(vocab_size, 99)
    draft_model.logits_PV[:, :, num_drafted:] = -np.inf
    return lambda branches: TableDrafter(draft_model, length, lambda request, prefix, q_V: branches.choose(q_V.tolist()))


def tree_drafter(vocab_size: int, num_nodes: int) -> Callable[[Branches], object]:
    return lambda branches: TreeDrafter(vocab_size, num_nodes)


def max_error(rule: str, vocab_size: int, length: int, drafter: Callable[[Branches], object]) -> float:
    """Return the largest difference between the joint distributions of the engine and of the model."""
    model = TableModel(vocab_size, 5)
    found = outcomes(rule, model, drafter)
    assert abs(sum(found.values()) - 1) < 1e-9
    assert max(len(tokens) for tokens in found) > 1, "no draft was ever accepted"
    expected = next_token_probs({(): 1.0}, model, length + 1)
    return float(np.abs(next_token_probs(found, model, length + 1) - expected).max())


@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize(
    ("vocab_size", "length", "num_drafted"), [(2, 3, 2), (3, 3, 3), (4, 3, 3), (5, 2, 5), (8, 1, 8), (8, 2, 5), (8, 3, 2)]
)
def test_sampled_chains_preserve_the_distribution(rule: str, vocab_size: int, length: int, num_drafted: int) -> None:
    assert max_error(rule, vocab_size, length, chain_drafter(length, vocab_size, num_drafted)) <= 1e-6


@pytest.mark.parametrize("rule", ["exact", "rejection"])
@pytest.mark.parametrize(("vocab_size", "num_nodes"), [(2, 3), (3, 5), (5, 6), (8, 7)])
def test_trees_preserve_the_distribution(rule: str, vocab_size: int, num_nodes: int) -> None:
    assert max_error(rule, vocab_size, 3, tree_drafter(vocab_size, num_nodes)) <= 1e-6


def test_typical_acceptance_changes_the_distribution() -> None:
    """Negative control: a lossy rule is detected."""
    assert max_error("typical", 4, 2, chain_drafter(2, 4, 3)) > 0.01


def test_resampling_from_p_in_place_of_the_residual_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "_residual", lambda p_V, token_id, draft_prob_V: p_V)
    assert max_error("rejection", 4, 2, chain_drafter(2, 4, 3)) > 0.01
    assert max_error("rejection", 3, 3, tree_drafter(3, 5)) > 0.01
