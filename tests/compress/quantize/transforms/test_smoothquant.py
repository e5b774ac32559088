"""SmoothQuant's factors are those of its formula, and rescue products of int8 from planted outlier channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.compress.quantize.planted_models import write_outliers
from tests.compress.quantize.stream_quantization import DEMO, Quantization, held_out_ids, int8, logits, mean_kl
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.quantize.transforms.scaled_input import ScaledInput, dense_weight, scaled_inputs
from hasten.compress.quantize.transforms.smoothquant import SmoothQuant
from hasten.core.errors import InvalidOption
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.models.layer_stream import LayerStream

INT8 = QuantSpec(scheme="compressed-tensors", kind="int", bits=8, granularity="channel", zero=128)
GRID = Grid(INT8, torch.float32)

Tiny = Callable[[str], Path]


def scaled_input(tiny: Tiny, number: int) -> ScaledInput:
    return scaled_inputs(LayerStream.open(Checkpoint.open(tiny("llama-gqa"))).layer(0))[number]


def statistics_of(inputs_TI: Tensor) -> InputStatistics:
    statistics = InputStatistics.empty(inputs_TI.shape[1], with_hessian=False)
    statistics.add(inputs_TI)
    return statistics


def inputs_with_outliers(size: int, factor: float) -> Tensor:
    inputs_TI = torch.randn(200, size, generator=torch.Generator().manual_seed(2))
    inputs_TI[:, 3::29] *= factor
    return inputs_TI


def product_error(inputs_TI: Tensor, weights_OI: Tensor, scales_I: Tensor) -> float:
    """Return the mean squared error of the product in int8, relative to the product."""
    scaled_OI = weights_OI * scales_I
    steps_O1 = scaled_OI.abs().amax(1, keepdim=True) / 127
    expected_TO = inputs_TI @ weights_OI.T
    actual_TO = int8(inputs_TI / scales_I) @ ((scaled_OI / steps_O1).round() * steps_O1).T
    return float((actual_TO - expected_TO).square().mean() / expected_TO.square().mean())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("number", [0, 2])
def test_factors_are_those_of_the_formula(tiny: Tiny, number: int, alpha: float) -> None:
    scaled = scaled_input(tiny, number)
    weights_OI = dense_weight(scaled.consumer)
    inputs_TI = inputs_with_outliers(64, 50)
    scales_I = SmoothQuant(alpha=alpha).scales(scaled, weights_OI, statistics_of(inputs_TI), GRID)
    expected = [max(map(abs, x)) ** alpha / max(map(abs, w)) ** (1 - alpha) for x, w in zip(inputs_TI.T, weights_OI.T, strict=True)]
    torch.testing.assert_close(scales_I, torch.stack(expected))
    assert torch.equal(scales_I, SmoothQuant(alpha=alpha).scales(scaled, weights_OI, statistics_of(inputs_TI), None))


def test_the_largest_inputs_and_weights_meet_at_one_half(tiny: Tiny) -> None:
    scaled = scaled_input(tiny, 0)
    inputs_TI, weights_OI = inputs_with_outliers(64, 50), dense_weight(scaled.consumer)
    scales_I = SmoothQuant(alpha=0.5).scales(scaled, weights_OI, statistics_of(inputs_TI), GRID)
    torch.testing.assert_close((inputs_TI / scales_I).abs().amax(0), (weights_OI * scales_I).abs().amax(0))


@pytest.mark.parametrize("number", [1, 3])
def test_only_inputs_after_norms_are_scaled(tiny: Tiny, number: int) -> None:
    scaled = scaled_input(tiny, number)
    weights_OI = dense_weight(scaled.consumer)
    statistics = statistics_of(inputs_with_outliers(weights_OI.shape[1], 50))
    assert torch.equal(SmoothQuant().scales(scaled, weights_OI, statistics, GRID), torch.ones(weights_OI.shape[1]))


@pytest.mark.parametrize("dead", ["no tokens", "all inputs", "some inputs", "some weights", "all weights"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_dead_channels_have_finite_factors(tiny: Tiny, dead: str, alpha: float) -> None:
    scaled = scaled_input(tiny, 0)
    inputs_TI, weights_OI = inputs_with_outliers(64, 50), dense_weight(scaled.consumer).clone()
    if "inputs" in dead:
        inputs_TI[:, slice(None) if dead.startswith("all") else slice(0, 64, 3)] = 0
    if "weights" in dead:
        weights_OI[:, slice(None) if dead.startswith("all") else slice(0, 64, 3)] = 0
    statistics = statistics_of(inputs_TI) if dead != "no tokens" else InputStatistics.empty(64, with_hessian=False)
    scales_I = SmoothQuant(alpha=alpha).scales(scaled, weights_OI, statistics, GRID)
    assert scales_I.isfinite().all()
    assert scales_I.min() > 0
    if dead.startswith("some"):
        ones_I = torch.ones(64)
        assert product_error(inputs_TI, weights_OI, scales_I) < 2 * product_error(inputs_TI, weights_OI, ones_I)


def test_products_in_int8_survive_outliers(tiny: Tiny) -> None:
    scaled = scaled_input(tiny, 0)
    inputs_TI, weights_OI = inputs_with_outliers(64, 100), dense_weight(scaled.consumer)
    weights_OI[:, 3::29] /= 100
    scales_I = SmoothQuant().scales(scaled, weights_OI, statistics_of(inputs_TI), GRID)
    before, after = (product_error(inputs_TI, weights_OI, s) for s in (torch.ones(64), scales_I))
    assert after < before / 100


def test_outlier_channels_keep_the_distribution(tmp_path: Path) -> None:
    outliers = write_outliers(tmp_path / "outliers", DEMO)
    evaluated_BS, calibration_BS = (held_out_ids(8, 128, calibration=flag) for flag in (False, True))
    reference_TV = logits(DEMO, evaluated_BS, calibration_BS, None)

    def divergence(transform: SmoothQuant | None) -> float:
        quantization = Quantization(GRID, transform, int8_activations=True)
        return mean_kl(reference_TV, logits(outliers, evaluated_BS, calibration_BS, quantization))

    rounding, smooth = divergence(None), divergence(SmoothQuant())
    assert rounding > 0.1
    assert smooth < rounding / 20


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "half"])
def test_other_exponents_are_refused(alpha: object) -> None:
    with pytest.raises(InvalidOption, match="alpha"):
        SmoothQuant(alpha=alpha)
