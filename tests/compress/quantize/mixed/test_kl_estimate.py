"""Means and bounds of the KL, against simulated texts."""

import pytest
import torch

from hasten.compress.quantize.mixed.kl_estimate import KlEstimate
from hasten.quality.intervals import student_t


@pytest.mark.parametrize(("num_clusters", "error_rate"), [(8, 0.05), (15, 0.05), (22, 0.05), (22, 0.025), (22, 0.00625)])
def test_the_bound_of_another_text_exceeds_the_limit_as_often_as_it_may(num_clusters: int, error_rate: float) -> None:
    """A fifth to spare, for the limit counts the spreads of two means and two standard errors as one normal number."""
    draw = torch.Generator().manual_seed(num_clusters)
    texts = 0.01 + 0.002 * torch.randn(2, 40_000, num_clusters, generator=draw, dtype=torch.float64)
    means, errors = texts.mean(-1), texts.std(-1) / num_clusters**0.5
    factor = KlEstimate(0.0, 1.0, num_clusters).upper(error_rate)
    exceeded = means[1] + student_t(num_clusters - 1) * errors[1] > means[0] + factor * errors[0]
    assert 0.8 * error_rate < float(exceeded.double().mean()) < 1.5 * error_rate + 0.003


def test_tokens_of_a_text_count_as_one_where_they_are_alike() -> None:
    values = torch.linspace(0.01, 0.03, 12, dtype=torch.float64)
    once, often = (KlEstimate.of_clusters([value.repeat(count) for value in values]) for count in (1, 100))
    assert often.standard_error == pytest.approx(once.standard_error) == pytest.approx(float(values.std()) / 12**0.5)
    assert often.upper() == pytest.approx(often.mean + KlEstimate(0.0, 1.0, 12).upper() * often.standard_error)
    assert often.upper(0.01) > often.upper()


def test_longer_clusters_count_more() -> None:
    clusters = [torch.full((tokens,), value, dtype=torch.float64) for tokens, value in ((10, 1.0), (10, 3.0), (20, 2.0), (40, 5.0))]
    estimate = KlEstimate.of_clusters(clusters)
    assert estimate.mean == pytest.approx((10 + 30 + 40 + 200) / 80)
    assert estimate.num_clusters == 4
    assert estimate.upper() > estimate.mean
