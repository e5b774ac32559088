"""``quantize_layer``: from a layer and the statistics of its inputs to the new tensors.

The statistics of all four matrices come from one pass of the layer in floating point, on inputs that the quantised layers before
it made (GPTQ's way). A second pass, with the quantised matrices, makes the inputs of the next layer.

Shape suffixes: O outputs · I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.checkpoints.quantized.writers.base import FormatWriter
from hasten.compress.quantize.grid import Grid, stored_scales
from hasten.compress.quantize.plan import LayerPlan, LinearPlan
from hasten.compress.quantize.recipe import Recipe
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.quantize.transforms.scaled_input import dense_weight, scaled_inputs
from hasten.core.errors import CheckpointError
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.formats.quant_spec import ActivationSpec
from hasten.layers.formats.stored_matrix import QuantizedRows
from hasten.layers.linear import Linear
from hasten.models.layer_stream import LayerStream
from hasten.models.load import weight_dtype

FP8_MAX = 448.0  # of e4m3
INT8_STEPS = 127.5  # half the number of steps, as compressed-tensors divides the range

Tick = Callable[[], None]  # called after each part of the work; raises to stop it


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    layer: DecoderLayer  # dense float32, with the weights that the tensors mean
    tensors: Mapping[str, Tensor]  # of the new checkpoint, by name


def quantize_layer(
    stream: LayerStream,
    plan: LayerPlan,
    recipe: Recipe,
    writer: FormatWriter,
    statistics: Mapping[str, InputStatistics],
    tick: Tick,
) -> QuantizedLayer:
    """Return a layer quantised.

    ``statistics`` are those of ``CalibrationState``; empty: the recipe needs no calibration.
    Raises ``CheckpointError`` if a method fails.
    """
    layer, inputs = stream.layer(plan.index), dict(statistics)
    grid = Grid(recipe.spec, writer.scale_dtype(stream.plan.dtype), recipe.clip)
    if recipe.transforms:
        _rescale_inputs(layer, plan, recipe, grid, inputs, tick)
        _round_others(stream, layer, plan)
    tensors: dict[str, Tensor] = {}
    for linear in plan.quantized:
        weight_OI = dense_weight(_find_linear(layer, linear.name))
        with _named_errors(linear.sources[0].name):
            rows = recipe.rounding.quantize(weight_OI.detach(), grid, inputs.get(linear.name), linear.sources[0].name)
        with torch.no_grad():
            weight_OI.copy_(rows.dequantize())
        tensors |= _encode(stream, linear, rows, recipe, writer, inputs.get(linear.name))
        tick()
    return QuantizedLayer(layer, tensors | other_tensors(stream, layer, plan, changed=bool(recipe.transforms)))


def _rescale_inputs(
    layer: DecoderLayer, plan: LayerPlan, recipe: Recipe, grid: Grid, statistics: dict[str, InputStatistics], tick: Tick
) -> None:
    """Apply the transforms, and divide the statistics by their factors."""
    quantized = {linear.name for linear in plan.quantized}
    integer_grid = grid if recipe.spec.kind == "int" else None
    for transform in recipe.transforms:
        for scaled_input in scaled_inputs(layer):
            name = scaled_input.name
            if name not in quantized:
                continue
            weights_OI = dense_weight(scaled_input.consumer).detach()
            scales_I = transform.scales(scaled_input, weights_OI, statistics[name], integer_grid)
            scaled_input.apply(scales_I)
            statistics[name] = statistics[name].divided(scales_I)
            tick()


def _round_others(stream: LayerStream, layer: DecoderLayer, plan: LayerPlan) -> None:
    """Round the changed norms, biases and unquantised matrices to the dtypes in which they are stored."""
    entries = stream.plan.checkpoint.tensors
    with torch.no_grad():
        for source in plan.unquantized_sources:
            dtype = weight_dtype(entries[source.name], "auto")
            assert dtype is not None
            rows = source.rows(layer)
            if not bool(rows.copy_(rows.to(dtype)).isfinite().all()):
                raise CheckpointError(
                    f"the transforms make {source.name} too large for {str(dtype).removeprefix('torch.')}",
                    remedy="Choose a method without transforms, or cast the model to bfloat16 first",
                )


def _encode(
    stream: LayerStream,
    linear: LinearPlan,
    rows: QuantizedRows,
    recipe: Recipe,
    writer: FormatWriter,
    statistics: InputStatistics | None,
) -> dict[str, Tensor]:
    activations = recipe.spec.activations
    input_scale = None
    if activations is not None and not activations.dynamic:
        assert statistics is not None
        input_scale = _input_scale(activations, statistics, stream.plan.dtype)
    tensors: dict[str, Tensor] = {}
    for module, source in zip(linear.modules, linear.sources, strict=True):
        part = rows.part(slice(source.start, source.stop))
        tensors |= writer.tensors(module, part, recipe.spec, stream.plan.dtype, input_scale)
    return tensors


def _input_scale(activations: ActivationSpec, statistics: InputStatistics, dtype: torch.dtype) -> float:
    """Return the step of static activations, a number of ``dtype`` above 0."""
    largest = statistics.absmax_I.max()
    scale = (largest if largest > 0 else torch.ones_like(largest)) / (INT8_STEPS if activations.kind == "int" else FP8_MAX)
    return float(stored_scales(scale, dtype))


def other_tensors(stream: LayerStream, layer: DecoderLayer, plan: LayerPlan, *, changed: bool) -> dict[str, Tensor]:
    """Return the tensors of the layer that are not quantised: as stored, or as transforms changed them."""
    checkpoint = stream.plan.checkpoint
    tensors: dict[str, Tensor] = {}
    for source in plan.unquantized_sources:
        stored = checkpoint.read(source.name)
        tensors[source.name] = source.rows(layer).detach().to(stored.dtype) if changed else stored
    return tensors


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Name the matrix in errors that do not."""
    try:
        yield
    except CheckpointError as error:
        if name in error.what:
            raise
        raise CheckpointError(f"{name}: {error.what}", **error.fields()) from None


def _find_linear(layer: DecoderLayer, name: str) -> Linear:
    linear = layer.get_submodule(name)
    assert isinstance(linear, Linear), name
    return linear
