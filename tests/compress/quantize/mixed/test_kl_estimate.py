"""Means and bounds of the KL, against tables and simulated text."""

import pytest
import torch

from hasten.compress.quantize.mixed.kl_estimate import KlEstimate, t_quantile

# 95 % one-sided, from a printed table.
TABLE = {3: 2.3534, 4: 2.1318, 7: 1.8946, 15: 1.7531, 30: 1.6973, 120: 1.6577}


@pytest.mark.parametrize("degrees", TABLE)
def test_the_quantile_is_that_of_tables(degrees: int) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(TABLE[degrees], rel=0.01 if degrees < 7 else 2e-4)


def test_the_mean_of_other_text_exceeds_the_bound_in_one_of_twenty_cases() -> None:
    draw = torch.Generator().manual_seed(0)
    exceeded = 0
    for _ in range(2000):
        texts = 0.01 + 0.002 * torch.randn(2, 12, 1, generator=draw, dtype=torch.float64)
        exceeded += float(texts[1].mean()) > KlEstimate.of_windows(list(texts[0])).upper
    assert 60 <= exceeded <= 140


def test_longer_windows_count_more() -> None:
    windows = [torch.full((tokens,), value, dtype=torch.float64) for tokens, value in ((10, 1.0), (10, 3.0), (20, 2.0), (40, 5.0))]
    estimate = KlEstimate.of_windows(windows)
    assert estimate.mean == pytest.approx((10 + 30 + 40 + 200) / 80)
    assert estimate.num_windows == 4
    assert estimate.upper > estimate.mean
