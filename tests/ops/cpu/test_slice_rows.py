"""``Linear.slice_rows`` gives bit by bit the logits of the selected rows, in every format."""

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

SIZE, VOCAB_SIZE = 64, 203
KINDS = ["dense", None, "int8", "int8-weight-only", "int4"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_gives_the_logits_of_its_rows(cpu: Cpu, kind: str | None, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SLICE_CHUNK", 7)
    generator = torch.Generator().manual_seed(0)
    formats = (
        DenseFormatFactory(TorchOps(), torch.float32) if kind == "dense" else PackedFormatFactory(Weights(cpu), torch.float32, kind)
    )
    context = LayerContext(TorchOps(), formats, torch.float32)
    linear_layer = Linear(context.formats.lm_head(SIZE, VOCAB_SIZE), bias=bias, layer_context=context)
    linear_layer.format.load("weight", torch.randn(VOCAB_SIZE, SIZE, generator=generator), slice(None), transposed=False)
    if linear_layer.bias is not None:
        linear_layer.bias.copy_(torch.randn(VOCAB_SIZE, generator=generator))
    ids = torch.randperm(VOCAB_SIZE, generator=generator)[:38]
    x = torch.randn(9, SIZE, generator=generator)
    sliced = linear_layer.slice_rows(ids, context)(x)
    assert sliced.shape == (9, 38)
    if kind == "dense":  # BLAS sums in another order for fewer columns
        torch.testing.assert_close(sliced, linear_layer(x)[:, ids], rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(sliced, linear_layer(x)[:, ids])
