"""AWQ's factors are those of its formulas, lower its objective, and rescue planted salient channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.compress.quantize.planted_models import write_salient
from tests.compress.quantize.stream_quantization import DEMO, Quantization, held_out_ids, logits, mean_kl, measure
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.quantize.transforms.awq import Awq, output_error, relative_magnitude
from hasten.compress.quantize.transforms.scaled_input import ScaledInput, dense_weight, scaled_inputs
from hasten.core.errors import InvalidOption
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.models.layer_stream import LayerStream

INT4 = QuantSpec(scheme="GPTQ", kind="int", bits=4, granularity="group", group_size=128, zero=8)
GRID = Grid(INT4, torch.float16)
SMALL_GRID = Grid(QuantSpec(scheme="GPTQ", kind="int", bits=4, granularity="group", group_size=16, zero=8), torch.float16)

Tiny = Callable[[str], Path]


class Halved:
    """A rule of clipping that must not run."""

    needs_hessian = False

    def ranges(self, weights_OGS: Tensor, grid: Grid, statistics: InputStatistics | None) -> tuple[Tensor, Tensor]:
        raise AssertionError


@pytest.fixture(scope="module")
def salient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_salient(tmp_path_factory.mktemp("models") / "salient", DEMO)


def statistics_of(inputs_TI: Tensor) -> InputStatistics:
    statistics = InputStatistics.empty(inputs_TI.shape[1], with_hessian=True)
    statistics.add(inputs_TI)
    return statistics


def random_inputs(size: int) -> Tensor:
    """Return inputs of channels whose magnitudes differ by decades, and that depend on one another. [T, I]"""
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(50, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return mixed * torch.empty(size).uniform_(-2, 2, generator=generator).exp()


def scaled_input(tiny: Tiny, number: int) -> ScaledInput:
    return scaled_inputs(LayerStream.open(Checkpoint.open(tiny("llama-gqa"))).layer(0))[number]


def rounded(weights_OI: Tensor, group_size: int) -> Tensor:
    """Return the weights on a symmetric grid of 16 numbers per group, with scales in float16."""
    groups = weights_OI.reshape(len(weights_OI), -1, group_size)
    scales = (groups.abs().amax(-1, keepdim=True) / 7.5).half().float()
    return ((groups / scales).round().clamp(-8, 7) * scales).reshape(weights_OI.shape)


def squared_error(inputs_TI: Tensor, weights_OI: Tensor, scales_I: Tensor, group_size: int) -> float:
    """Return the mean squared distance of the outputs, computed on the inputs themselves."""
    actual = (inputs_TI / scales_I) @ rounded(weights_OI * scales_I, group_size).T
    return float((actual - inputs_TI @ weights_OI.T).square().sum(1).mean())


def test_the_error_is_that_of_the_outputs(tiny: Tiny) -> None:
    weights_OI = dense_weight(scaled_input(tiny, 2).consumer)
    inputs_TI = random_inputs(64)
    scales_I = torch.empty(64).uniform_(0.2, 5, generator=torch.Generator().manual_seed(4))
    expected = squared_error(inputs_TI, weights_OI, scales_I, 16)
    assert output_error(weights_OI, scales_I, statistics_of(inputs_TI).hessian_II, SMALL_GRID) == pytest.approx(expected, rel=1e-4)


def test_relative_magnitudes_are_means_over_the_outputs() -> None:
    weights_OI = torch.tensor([[1.0, -4.0, 0.0, 0.0], [3.0, 2.0, 5.0, -1.0]])
    torch.testing.assert_close(relative_magnitude(weights_OI, 2), torch.tensor([0.625, 5 / 6, 0.5, 0.1]))
    torch.testing.assert_close(relative_magnitude(weights_OI, 4), torch.tensor([0.425, 0.7, 0.5, 0.1]))


@pytest.mark.parametrize("duo_scaling", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_factors_are_the_best_of_the_grid(tiny: Tiny, number: int, duo_scaling: bool) -> None:
    """The reference evaluates each candidate on the inputs."""
    scaled = scaled_input(tiny, number)
    weights_OI = dense_weight(scaled.consumer)
    inputs_TI = random_inputs(weights_OI.shape[1])
    magnitudes = weights_OI.abs().reshape(len(weights_OI), -1, 16)
    w = (magnitudes / magnitudes.amax(-1, keepdim=True)).mean(0).flatten()
    candidates = [torch.ones_like(w)]
    for step in range(10):
        r = step / 10
        s = scaled.tie(inputs_TI.abs().mean(0) ** r / (w ** (1 - r) + 1e-4 if duo_scaling else 1.0))
        candidates.append(s / (s.max() * s.min()).sqrt())
    expected = min(candidates, key=lambda s: squared_error(inputs_TI, weights_OI, s, 16))
    actual = Awq(grid_size=10, duo_scaling=duo_scaling).scales(scaled, weights_OI, statistics_of(inputs_TI), SMALL_GRID)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual, scaled.tie(actual))
    assert not torch.equal(actual, torch.ones_like(actual))


def test_the_error_of_every_matrix_falls(salient: Path) -> None:
    calibration_BS = held_out_ids(8, 128, calibration=True)
    ratios: dict[Path, list[float]] = {DEMO: [], salient: []}
    for folder, found in ratios.items():
        stream = LayerStream.open(Checkpoint.open(folder))
        hidden_BSE = stream.embed(calibration_BS)
        for index in range(2):
            layer = stream.layer(index)
            statistics = measure(stream, layer, index, hidden_BSE)
            for scaled in scaled_inputs(layer):
                weights_OI, seen = dense_weight(scaled.consumer), statistics[scaled.name]
                scales_I = Awq().scales(scaled, weights_OI, seen, GRID)
                ones_I = torch.ones_like(scales_I)
                errors = [output_error(weights_OI, s, seen.hessian_II, GRID) for s in (scales_I, ones_I)]
                found.append(errors[0] / errors[1])
            hidden_BSE = torch.cat([outputs for _, outputs in stream.run(layer, index, hidden_BSE)])
    assert max(ratios[DEMO]) <= 1 and min(ratios[DEMO]) < 0.9
    assert max(ratios[salient]) <= 1
    after_norms = [ratio for number, ratio in enumerate(ratios[salient]) if number % 4 in (0, 2)]
    assert max(after_norms) < 0.35


def test_salient_channels_keep_the_distribution(salient: Path) -> None:
    evaluated_BS, calibration_BS = held_out_ids(16, 128, calibration=False), held_out_ids(8, 128, calibration=True)
    reference_TV = logits(DEMO, evaluated_BS, calibration_BS, None)
    rounding, awq = (
        mean_kl(reference_TV, logits(salient, evaluated_BS, calibration_BS, Quantization(GRID, transform)))
        for transform in (None, Awq())
    )
    assert rounding > 0.08
    assert awq <= 0.5 * rounding


def test_grids_without_groups_of_integers_get_ones(tiny: Tiny) -> None:
    scaled = scaled_input(tiny, 0)
    scales_I = Awq().scales(scaled, dense_weight(scaled.consumer), statistics_of(random_inputs(64)), None)
    assert torch.equal(scales_I, torch.ones(64))


def test_the_search_does_not_clip(tiny: Tiny) -> None:
    scaled = scaled_input(tiny, 0)
    weights_OI, seen = dense_weight(scaled.consumer), statistics_of(random_inputs(64))
    clipped = Grid(SMALL_GRID.spec, SMALL_GRID.scale_dtype, Halved())
    assert torch.equal(Awq().scales(scaled, weights_OI, seen, clipped), Awq().scales(scaled, weights_OI, seen, SMALL_GRID))


@pytest.mark.parametrize("duo_scaling", [True, False])
@pytest.mark.parametrize("dead", ["no tokens", "all inputs", "some inputs", "some weights", "all weights"])
def test_dead_channels_have_finite_factors(tiny: Tiny, dead: str, duo_scaling: bool) -> None:
    scaled = scaled_input(tiny, 0)
    weights_OI, inputs_TI = dense_weight(scaled.consumer).clone(), random_inputs(64)
    if "inputs" in dead:
        inputs_TI[:, slice(None) if dead.startswith("all") else slice(0, 64, 3)] = 0
    if "weights" in dead:
        weights_OI[:, slice(None) if dead.startswith("all") else slice(0, 64, 3)] = 0
    seen = statistics_of(inputs_TI) if dead != "no tokens" else InputStatistics.empty(64, with_hessian=True)
    scales_I = Awq(duo_scaling=duo_scaling).scales(scaled, weights_OI, seen, SMALL_GRID)
    assert scales_I.isfinite().all()
    assert scales_I.min() >= 0.0099 and scales_I.max() <= 101


@pytest.mark.parametrize("grid_size", [0, 2.5, True])
def test_other_grid_sizes_are_refused(grid_size: object) -> None:
    with pytest.raises(InvalidOption, match="grid_size"):
        Awq(grid_size=grid_size)
