"""Statistics of inputs against NumPy in float64, and the inputs that they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compress.quantize.matrices import correlated, measured
from torch import Tensor

from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.quantize import quantize
from hasten.compress.quantize.statistics import ROWS, InputStatistics
from hasten.core.errors import CheckpointError


def in_chunks(x_TI: Tensor, size: int) -> InputStatistics:
    statistics = InputStatistics.empty(x_TI.shape[1], with_hessian=True)
    for part_TI in torch.split(x_TI, size):
        statistics.add(part_TI)
    return statistics


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


def test_sums_over_many_tokens_are_those_of_float64() -> None:
    """65,536 tokens in parts of 2,048, as a calibration adds them. Channel 3 is an outlier with a mean."""
    x_TI = correlated(65_536, 24)
    x_TI[:, 3] = 1000 + x_TI[:, 3]
    statistics, exact = in_chunks(x_TI, 2048), x_TI.double().numpy()
    assert statistics.num_tokens == 65_536
    assert np.array_equal(statistics.absmax_I, np.abs(x_TI.numpy()).max(0))
    np.testing.assert_allclose(statistics.mean_abs_I, np.abs(exact).mean(0), rtol=1e-5)
    hessian = exact.T @ exact / len(exact)
    magnitudes = np.sqrt(np.outer(hessian.diagonal(), hessian.diagonal()))
    assert (np.abs(statistics.hessian_II.numpy() - hessian) < 1e-5 * magnitudes).all()


def test_divided_statistics_are_those_of_divided_inputs() -> None:
    x_TI, scales_I = correlated(200, 16), torch.linspace(0.1, 9, 16)
    divided, expected = measured(x_TI).divided(scales_I), measured(x_TI / scales_I)
    for name in ("absmax_I", "mean_abs_I", "hessian_II"):
        torch.testing.assert_close(getattr(divided, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


def test_statistics_of_some_inputs_are_those_of_their_columns() -> None:
    x_TI = correlated(200, 16)
    some, expected = measured(x_TI).of_inputs(slice(4, 9)), measured(x_TI[:, 4:9].contiguous())
    for name in ("absmax_I", "mean_abs_I", "hessian_II"):
        torch.testing.assert_close(getattr(some, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_hessian", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused(value: float, with_hessian: bool) -> None:
    statistics = InputStatistics.empty(4, with_hessian=with_hessian)
    with pytest.raises(CheckpointError, match="no calibration token reached 'w'"):
        statistics.check("w")
    statistics.add(torch.ones(3, 4))
    statistics.check("w")
    statistics.add(torch.tensor([[1, value, 1, 1]]))
    statistics.add(torch.ones(3, 4))
    with pytest.raises(CheckpointError, match="the inputs of 'w' are not finite in calibration"):
        statistics.check("w")


def test_squares_that_overflow_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not finite in calibration"):
        measured(torch.full((2, 4), 1e30)).check("w")


@pytest.mark.parametrize(
    "method, options",
    [
        ("awq", {"group_size": 32}),
        ("smoothquant", {}),
        ("gptq", {"group_size": 32}),
        ("rtn", {"activations": "int8-static"}),
        ("fp8", {"activations": "fp8-static"}),
        ("rtn", {"clip": "output", "group_size": 32}),
    ],
    ids=["awq", "smoothquant", "gptq", "int8-static", "fp8-static", "output-clip"],
)
def test_every_method_with_calibration_refuses_a_model_of_nan(
    method: str, options: dict[str, Any], model: Path, calibration: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][:] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    given = QuantizeOptions(method=method, samples=2, seq_len=16, **options)
    with pytest.raises(CheckpointError, match=r"inputs of 'model\.layers\.0\..*q_proj\.weight' are not finite in calibration"):
        quantize(str(broken), tmp_path / "out", given, calibration=calibration)
    assert not (tmp_path / "out").exists()
