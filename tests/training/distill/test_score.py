"""Scores of batches add up to that of their text, and the mean loss weighs text and teacher."""

from __future__ import annotations

import math

import pytest

from hasten.training.distill.score import DistillScore


def score(**values) -> DistillScore:
    return DistillScore(**{"num_positions": 4, "nll": 8.0, "kl": 2.0, "num_agreed": 3, **values})


def test_sums_add_up_and_means_are_over_all_positions():
    total = score() + DistillScore(num_positions=12, nll=0.0, kl=6.0, num_agreed=9)
    assert total == DistillScore(num_positions=16, nll=8.0, kl=8.0, num_agreed=12)
    perplexity = pytest.approx(math.exp(0.5))
    assert total.as_dict() == {"loss": 0.5, "positions": 16, "perplexity": perplexity, "kl": 0.5, "top1_agreement": 0.75}


@pytest.mark.parametrize(("weight", "loss"), [(0.0, 0.5), (0.25, 0.875), (1.0, 2.0)])
def test_the_mean_loss_weighs_text_and_teacher(weight, loss):
    assert score(text_weight=weight).mean_loss == (score(text_weight=weight) + score(text_weight=weight)).mean_loss == loss


def test_a_kl_of_a_few_tokens_and_the_rest_is_named_so():
    total = score(top_k=8) + score(top_k=8)
    assert total.describe() == f"perplexity {math.exp(2):.3f}, KL 0.500 of 8 tokens and the rest, same top token 75.0%"
    entries = total.as_dict()
    assert "kl" not in entries and (entries["coarse_kl"], entries["coarse_kl_tokens"]) == (0.5, 8)


def test_without_a_teacher_the_loss_is_that_of_the_text():
    alone = score(kl=None, num_agreed=None)
    assert alone.mean_loss == 2.0 and alone.describe() == f"perplexity {math.exp(2):.3f}"
    assert alone.as_dict().keys() == {"loss", "positions", "perplexity"}


def test_the_divergence_is_described_where_it_is_not_the_loss():
    assert score().describe() == f"perplexity {math.exp(2):.3f}, same top token 75.0%"
    assert score(text_weight=1.0).describe() == f"perplexity {math.exp(2):.3f}, KL 0.500, same top token 75.0%"
