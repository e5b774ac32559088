"""A model beyond the native kernels goes to PyTorch as a whole, with a warning, unless an option asks for the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.models.load import read_spec
from hasten.models.spec import DecoderSpec
from hasten.runners.backends.choose import choose_backend
from hasten.runners.backends.native import NativeBackend
from hasten.runners.backends.torch import TorchBackend


@pytest.fixture
def spec(tiny: Callable[[str], Path]) -> DecoderSpec:
    return read_spec(Checkpoint.open(tiny("gpt2")))


def changed(spec: DecoderSpec, *, head_dim: int | None = None, intermediate_size: int | None = None) -> DecoderSpec:
    """Change the last two layers."""
    layers = []
    for layer in spec.layers:
        attention = dataclasses.replace(layer.attention, head_dim=head_dim or layer.attention.head_dim)
        mlp = dataclasses.replace(layer.mlp, intermediate_size=intermediate_size or layer.mlp.intermediate_size)
        layers.append(dataclasses.replace(layer, attention=attention, mlp=mlp))
    return dataclasses.replace(spec, layers=(spec.layers[0], *layers[1:]))


def options(**values: object) -> EngineOptions:
    return EngineOptions(threads=1, **values)


def test_odd_and_large_heads_within_the_limit_are_native(spec: DecoderSpec) -> None:
    for head_dim in (1, 33, 511, 512):
        assert isinstance(choose_backend(options(), changed(spec, head_dim=head_dim)), NativeBackend)


def test_heads_beyond_the_limit_go_to_pytorch_with_a_warning(spec: DecoderSpec) -> None:
    fault = r"layers\.1\.attention and 1 other layers: heads of 513 dimensions \(at most 512\)"
    with pytest.warns(UserWarning, match=fault):
        assert isinstance(choose_backend(options(), changed(spec, head_dim=513)), TorchBackend)
    for asked in ({"backend": "cpu"}, {"quantization": "int4-weight-only"}, {"kv_cache_dtype": "int8"}):
        with pytest.raises(InvalidOption, match=f"{next(iter(asked))} needs the native CPU kernels, and .*{fault}"):
            choose_backend(options(**asked), changed(spec, head_dim=513))


def test_wide_layers_are_refused_only_where_integers_would_overflow(spec: DecoderSpec) -> None:
    wide = changed(spec, intermediate_size=2**19)
    for works in ({}, {"quantization": "int8-weight-only"}, {"quantization": "int4-weight-only"}):
        assert isinstance(choose_backend(options(**works), wide), NativeBackend)
    for quantization in ("int8", "int4"):
        with pytest.raises(InvalidOption, match=r"layers\.1\.mlp\.down and 1 other layers: 524,288 inputs .*at most 131,072"):
            choose_backend(options(quantization=quantization), wide)
