"""The statistics of a matrix's inputs are those of their definition, in any number of parts."""

from __future__ import annotations

import pytest
import torch

from hasten.compress.quantize.statistics import ROWS, InputStatistics


@pytest.mark.parametrize("in_features", [5, ROWS, 2 * ROWS + 76])
def test_statistics_equal_their_definition(in_features: int) -> None:
    inputs_TI = torch.randn(300, in_features, generator=torch.Generator().manual_seed(1))
    statistics = InputStatistics.empty(in_features, with_hessian=True)
    for part in inputs_TI.split(77):
        statistics.add(part)
    exact = inputs_TI.double()
    assert statistics.num_tokens == 300
    torch.testing.assert_close(statistics.hessian_II.double(), exact.T @ exact / 300, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(statistics.mean_abs_I.double(), exact.abs().mean(0), atol=1e-6, rtol=1e-5)
    assert torch.equal(statistics.absmax_I, inputs_TI.abs().amax(0))


def test_divided_inputs_and_a_part_of_them_have_their_own_statistics() -> None:
    inputs_TI = torch.randn(50, 12, generator=torch.Generator().manual_seed(2))
    scales_I = torch.rand(12, generator=torch.Generator().manual_seed(3)) + 0.5
    statistics, expected = (InputStatistics.empty(size, with_hessian=True) for size in (12, 6))
    statistics.add(inputs_TI)
    expected.add((inputs_TI / scales_I)[:, 3:9])
    found = statistics.divided(scales_I).of_inputs(slice(3, 9))
    torch.testing.assert_close(found.hessian_II, expected.hessian_II)
    torch.testing.assert_close(found.mean_abs_I, expected.mean_abs_I)
    torch.testing.assert_close(found.absmax_I, expected.absmax_I)
