"""Rescaled inputs keep the function of a layer, and of the model in transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.tiny_models import tiny_reference
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.transforms.scaled_input import ScaledInput, dense_weight, scaled_inputs
from hasten.layers.decoder_layer import DecoderLayer
from hasten.models.layer_stream import LayerStream

MODELS = [
    "llama-gqa",
    "llama-mha-tied",
    "llama-mqa-bias",
    "llama-head-dim",
    "llama-gelu",
    "qwen2-tied",
    "qwen3-gqa",
    "qwen3-tied-bias",
    "mistral-window",
    "gpt2",
    "gpt2-untied-gelu",
]
NAMES = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")

Tiny = Callable[[str], Path]


def factors(scaled: ScaledInput, seed: int) -> Tensor:
    """Return random tied factors from 1/16 to 16."""
    generator = torch.Generator().manual_seed(seed)
    return scaled.tie(torch.empty(len(scaled.index_I)).uniform_(-4, 4, generator=generator).exp2())


def hidden(size: int) -> Tensor:
    return torch.randn(2, 11, size, generator=torch.Generator().manual_seed(3))


def run(stream: LayerStream, layer: DecoderLayer, index: int) -> Tensor:
    return torch.cat([outputs for _, outputs in stream.run(layer, index, hidden(stream.spec.hidden_size))])


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Assert equality up to the rounding of float32 sums."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def inputs_of(scaled: ScaledInput, stream: LayerStream, layer: DecoderLayer) -> Tensor:
    """Return the inputs that the matrix reads."""
    seen: list[Tensor] = []
    hook = scaled.consumer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    run(stream, layer, 1)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("name", MODELS)
def test_each_input_is_divided_and_the_layer_keeps_its_function(tiny: Tiny, name: str) -> None:
    stream = LayerStream.open(Checkpoint.open(tiny(name)))
    expected = run(stream, stream.layer(1), 1)
    names = [scaled.name for scaled in scaled_inputs(stream.layer(1))]
    assert tuple(names) == (NAMES[:3] if name.startswith("gpt2") else NAMES)
    for number in range(len(names)):
        layer = stream.layer(1)
        scaled = scaled_inputs(layer)[number]
        assert scaled.is_after_norm == (scaled.name in ("attention.qkv", "mlp.up"))
        assert scaled.consumer is layer.get_submodule(scaled.name)
        scales_I = factors(scaled, number)
        weights_OI, inputs_TI = dense_weight(scaled.consumer).clone(), inputs_of(scaled, stream, layer)
        scaled.apply(scales_I)
        assert torch.equal(dense_weight(scaled.consumer), weights_OI * scales_I)
        assert_equal(inputs_of(scaled, stream, layer) * scales_I, inputs_TI)
        assert_equal(run(stream, layer, 1), expected)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_keeps_its_logits_with_the_rescaled_weights(tiny: Tiny, name: str) -> None:
    stream, model = LayerStream.open(Checkpoint.open(tiny(name))), tiny_reference(name)
    ids = torch.randint(0, stream.spec.vocab_size, (2, 19), generator=torch.Generator().manual_seed(5))
    expected, parameters = model(ids).logits, dict(model.named_parameters())
    with torch.no_grad():
        for index in range(stream.spec.num_layers):
            layer = stream.layer(index)
            for number, scaled in enumerate(scaled_inputs(layer)):
                scaled.apply(factors(scaled, 10 * index + number))
            for source in stream.layer_sources(index):
                rows = source.rows(layer)
                parameters[source.name].copy_(rows.T if source.transposed else rows)
    assert_equal(model(ids).logits, expected)


def test_query_heads_of_a_group_share_the_factors_of_their_value(tiny: Tiny) -> None:
    stream = LayerStream.open(Checkpoint.open(tiny("llama-gqa")))
    scaled = scaled_inputs(stream.layer(0))[1]
    scales = torch.empty(4, 16).uniform_(0.1, 10, generator=torch.Generator().manual_seed(1))  # [head, dim], 2 kv heads
    expected = torch.empty_like(scales)
    for head in range(4):
        group = range(2) if head < 2 else range(2, 4)
        for dim in range(16):
            expected[head, dim] = (scales[group[0], dim] * scales[group[1], dim]) ** 0.5
    tied = scaled.tie(scales.flatten())
    torch.testing.assert_close(tied, expected.flatten())
    torch.testing.assert_close(scaled.tie(tied), tied)


@pytest.mark.parametrize("name, number", [("llama-mha-tied", 1), ("llama-gqa", 0), ("llama-gqa", 2), ("llama-gqa", 3)])
def test_inputs_with_producers_of_their_own_keep_their_factors(tiny: Tiny, name: str, number: int) -> None:
    scaled = scaled_inputs(LayerStream.open(Checkpoint.open(tiny(name))).layer(0))[number]
    scales_I = torch.empty(len(scaled.index_I)).uniform_(0.1, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(scaled.tie(scales_I), scales_I)
