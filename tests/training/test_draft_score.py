"""``count_accepted`` against a count by hand over chains."""

from __future__ import annotations

import pytest
import torch

from hasten.training.draft_score import DraftScore, count_accepted, topk_tokens

DEPTHS, POSITIONS, TOP_K = 3, 400, 4


@pytest.fixture
def tokens():
    """Top draft tokens [D, R, K], and the target's tokens [D, R]."""
    generator = torch.Generator().manual_seed(0)
    draft = torch.rand(DEPTHS, POSITIONS, 6, generator=generator).argsort(-1)[:, :, :TOP_K]
    return draft, torch.randint(6, (DEPTHS, POSITIONS), generator=generator)


def test_a_depth_counts_if_all_earlier_depths_are_accepted(tokens):
    draft, target = tokens
    accepted, reached = [0] * DEPTHS, [0] * DEPTHS
    for position in range(POSITIONS):
        for depth in range(DEPTHS):
            reached[depth] += 1
            if draft[depth, position, 0] != target[depth, position]:
                break
            accepted[depth] += 1
    score = count_accepted(draft, target, 2.5)
    assert (list(score.accepted), list(score.reached)) == (accepted, reached) and min(accepted) > 0
    assert score.acceptance == tuple(a / r for a, r in zip(accepted, reached, strict=True))
    assert score.accepted_length == pytest.approx(sum(accepted) / POSITIONS)
    assert (score.num_positions, score.mean_loss) == (POSITIONS, 2.5)


def test_a_rank_counts_whatever_earlier_depths_are(tokens):
    draft, target = tokens
    expected = [[sum(int(draft[d, r, k] == target[d, r]) for r in range(POSITIONS)) for k in range(TOP_K)] for d in range(DEPTHS)]
    score = count_accepted(draft, target, 0.0)
    assert [list(ranks) for ranks in score.rank_hits] == expected
    assert score.accuracies[1][2] == expected[1][2] / POSITIONS


def test_scores_of_batches_add_up(tokens):
    draft, target = tokens
    parts = [count_accepted(draft[:, a:b], target[:, a:b], float(a)) for a, b in ((0, 150), (150, 400))]
    full, total = count_accepted(draft, target, 0.0), sum(parts, DraftScore.zero())
    assert (total.accepted, total.reached, total.rank_hits) == (full.accepted, full.reached, full.rank_hits)
    assert total.num_positions == POSITIONS
    assert total.mean_loss == pytest.approx((150 * 0 + 250 * 150) / 400)


@pytest.mark.parametrize("block", [1, 70, 1 << 20])
def test_top_k_tokens_are_in_order(block):
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(9, 5, generator=generator), torch.randn(23, 5, generator=generator)
    expected = (hidden @ weight.T).argsort(-1, descending=True)[:, :10]
    assert torch.equal(topk_tokens(hidden, weight, block), expected)
    assert topk_tokens(hidden, weight[:4]).shape == (9, 4)
