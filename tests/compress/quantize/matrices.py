"""Random matrices, the statistics of their inputs, and grids to quantise them on."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.compress.quantize.clip import build_clip
from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.layers.formats.quant_spec import QuantSpec


def grid(
    bits: int = 4,
    group_size: int | None = 32,
    *,
    symmetric: bool = True,
    scale_dtype: torch.dtype = torch.float16,
    clip: str = "none",
    percentile: float = 99.0,
) -> Grid:
    """Return an integer grid. ``group_size`` None: one scale per output."""
    spec = QuantSpec(
        scheme="compressed-tensors",
        kind="int",
        bits=bits,
        granularity="group" if group_size else "channel",
        group_size=group_size,
        zero=1 << (bits - 1) if symmetric else None,
    )
    return Grid(spec, scale_dtype, build_clip(clip, percentile))


def heavy_tailed(num_outputs: int, num_inputs: int, seed: int = 0) -> Tensor:
    """Return Laplace weights, as trained matrices resemble them."""
    draw = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_outputs, num_inputs, generator=draw) - 0.5
    return -0.02 * uniform.sign() * (1 - 2 * uniform.abs()).clamp_min(1e-7).log()


def correlated(num_tokens: int, num_inputs: int, seed: int = 0) -> Tensor:
    """Return inputs that correlate, with a different mean square each."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.eye(num_inputs) + torch.randn(num_inputs, num_inputs, generator=draw) / num_inputs**0.5
    return torch.randn(num_tokens, num_inputs, generator=draw) @ mix * torch.randn(num_inputs, generator=draw).exp()


def measured(x_TI: Tensor) -> InputStatistics:
    statistics = InputStatistics.empty(x_TI.shape[1], with_hessian=True)
    statistics.add(x_TI)
    return statistics


def output_error(errors_OI: Tensor, statistics: InputStatistics) -> Tensor:
    """Return the mean squared output error of each row, float64."""
    errors = errors_OI.double()
    return ((errors @ statistics.hessian_II.double()) * errors).sum(-1)
