"""What is counted, against a count by hand over chains."""

from __future__ import annotations

import pytest
import torch

from hasten.training.count_accepted import count_accepted, likeliest
from hasten.training.draft_score import DraftScore

DEPTHS, POSITIONS, RANKS = 3, 400, 4


@pytest.fixture
def guesses():
    generator = torch.Generator().manual_seed(0)
    ranked = torch.rand(DEPTHS, POSITIONS, 6, generator=generator).argsort(-1)[:, :, :RANKS]
    return ranked, torch.randint(6, (DEPTHS, POSITIONS), generator=generator)


def test_a_depth_counts_if_all_before_it_were_right(guesses):
    ranked, wanted = guesses
    right, seen = [0] * DEPTHS, [0] * DEPTHS
    for position in range(POSITIONS):
        for depth in range(DEPTHS):
            seen[depth] += 1
            if ranked[depth, position, 0] != wanted[depth, position]:
                break
            right[depth] += 1
    score = count_accepted(ranked, wanted, 2.5)
    assert (list(score.right), list(score.seen)) == (right, seen) and min(right) > 0
    assert score.acceptance == tuple(r / s for r, s in zip(right, seen, strict=True))
    assert score.accepted_length == pytest.approx(sum(right) / POSITIONS)
    assert (score.num_positions, score.mean_loss) == (POSITIONS, 2.5)


def test_a_rank_counts_whatever_was_before_it(guesses):
    ranked, wanted = guesses
    counted = [[sum(int(ranked[d, p, k] == wanted[d, p]) for p in range(POSITIONS)) for k in range(RANKS)] for d in range(DEPTHS)]
    score = count_accepted(ranked, wanted, 0.0)
    assert [list(depth) for depth in score.ranks] == counted
    assert score.accuracies[1][2] == counted[1][2] / POSITIONS


def test_scores_of_batches_add_up(guesses):
    ranked, wanted = guesses
    parts = [count_accepted(ranked[:, a:b], wanted[:, a:b], float(a)) for a, b in ((0, 150), (150, 400))]
    whole, total = count_accepted(ranked, wanted, 0.0), sum(parts, DraftScore.nothing())
    assert (total.right, total.seen, total.ranks, total.num_positions) == (whole.right, whole.seen, whole.ranks, POSITIONS)
    assert total.mean_loss == pytest.approx((150 * 0 + 250 * 150) / 400)


@pytest.mark.parametrize("block", [1, 70, 1 << 20])
def test_the_likeliest_are_in_order(block):
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(9, 5, generator=generator), torch.randn(23, 5, generator=generator)
    expected = (hidden @ weight.T).argsort(-1, descending=True)[:, :10]
    assert torch.equal(likeliest(hidden, weight, block), expected)
    assert likeliest(hidden, weight[:4]).shape == (9, 4)
