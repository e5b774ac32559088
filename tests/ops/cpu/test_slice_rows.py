"""Some rows of a vocabulary are those rows: the same logits to the bit, in every format."""

from __future__ import annotations

import pytest
import torch

from hasten.layers import linear
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.formats.packed import PackedFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.matrix import Weights
from hasten.ops.torch.backend import TorchOps

SIZE, WORDS = 64, 203
KINDS = ["dense", None, "int8", "int8-weight-only", "int4"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_some_rows_are_those_rows(cpu: Cpu, kind: str | None, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SLICE_CHUNK", 7)
    draw = torch.Generator().manual_seed(0)
    formats = (
        DenseFormatFactory(TorchOps(), torch.float32) if kind == "dense" else PackedFormatFactory(Weights(cpu), torch.float32, kind)
    )
    build = LayerContext(TorchOps(), formats, torch.float32)
    whole = Linear(build.formats.lm_head(SIZE, WORDS), bias=bias, layer_context=build)
    whole.format.load("weight", torch.randn(WORDS, SIZE, generator=draw), slice(None), transposed=False)
    if whole.bias is not None:
        whole.bias.copy_(torch.randn(WORDS, generator=draw))
    ids = torch.randperm(WORDS, generator=draw)[:38]
    x = torch.randn(9, SIZE, generator=draw)
    some = whole.slice_rows(ids, build)(x)
    assert some.shape == (9, 38)
    if kind == "dense":  # BLAS adds in another order where there are fewer columns
        torch.testing.assert_close(some, whole(x)[:, ids], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(some, whole(x)[:, ids])
