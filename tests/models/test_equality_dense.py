"""Teacher-forced logits of all tiny models equal those of transformers; planted faults are caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.models.dense import dense_logits, differences
from tests.tiny_models import TINY, tiny_reference
from torch import Tensor

from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.spec import AttentionSpec
from hasten.models.decoder import Decoder
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

LENGTHS = (48, 1, 17)


@cache
def prompts(vocab_size: int) -> tuple[tuple[int, ...], ...]:
    generator = torch.Generator().manual_seed(7)
    return tuple(tuple(torch.randint(vocab_size, (n,), generator=generator).tolist()) for n in LENGTHS)


@cache
def expected(name: str) -> Tensor:
    reference = tiny_reference(name)
    with torch.no_grad():
        return torch.cat([reference(torch.tensor([ids])).logits[0] for ids in prompts(reference.config.vocab_size)])


@pytest.mark.parametrize("name", TINY)
def test_logits_equal_transformers(name: str, tiny: Callable[[str], Path]) -> None:
    decoder = load_decoder(tiny(name), ops=TorchOps()).decoder
    assert decoder.dtype == torch.float32
    assert differences(dense_logits(decoder, prompts(decoder.spec.vocab_size)), expected(name)) == []


def _with_attention(change: Callable[[AttentionSpec], AttentionSpec]) -> Callable[[Decoder], Decoder]:
    """Return a function that builds the decoder again with a changed spec and the same weights."""

    def plant(decoder: Decoder) -> Decoder:
        spec = decoder.spec
        layers = tuple(dataclasses.replace(layer, attention=change(layer.attention)) for layer in spec.layers)
        other = Decoder(dataclasses.replace(spec, layers=layers), decoder.ops, decoder.dtype)
        other.load_state_dict(decoder.state_dict())
        return other

    return plant


def _zero(parameter: str) -> Callable[[Decoder], Decoder]:
    def plant(decoder: Decoder) -> Decoder:
        decoder.get_parameter(parameter).zero_()
        return decoder

    return plant


def _doubled_base(spec: AttentionSpec) -> AttentionSpec:
    assert spec.rotary is not None
    return dataclasses.replace(spec, rotary=dataclasses.replace(spec.rotary, theta=2 * spec.rotary.theta))


def _unscaled_rope(spec: AttentionSpec) -> AttentionSpec:
    assert spec.rotary is not None
    return dataclasses.replace(spec, rotary=dataclasses.replace(spec.rotary, scaling=None))


def _wider(spec: AttentionSpec) -> AttentionSpec:
    return dataclasses.replace(spec, window=None if spec.window is None else spec.window + 1)


def _full(spec: AttentionSpec) -> AttentionSpec:
    return dataclasses.replace(spec, window=None)


def _no_qk_norm(decoder: Decoder) -> Decoder:
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        layer.attention.q_norm = layer.attention.k_norm = None
    return decoder


def _swapped_gate_and_up(decoder: Decoder) -> Decoder:
    weight = decoder.get_parameter("layers.1.mlp.up.format.weight")
    weight.copy_(weight.roll(weight.shape[0] // 2, 0))
    return decoder


def _shifted_positions(decoder: Decoder) -> Decoder:
    weight = decoder.get_parameter("positions.format.weight")
    weight.copy_(weight.roll(1, 0))
    return decoder


def _swapped_kv_heads(decoder: Decoder) -> Decoder:
    spec = decoder.spec.layers[0].attention
    keys = decoder.get_parameter("layers.0.attention.qkv.format.weight")[spec.q_size : spec.q_size + spec.kv_size]
    keys.copy_(keys.roll(spec.head_dim, 0))
    return decoder


FAULTS: dict[str, tuple[str, Callable[[Decoder], Decoder]]] = {
    "qkv bias dropped": ("qwen2-tied", _zero("layers.1.attention.qkv.bias")),
    "out bias dropped": ("llama-mqa-bias", _zero("layers.2.attention.out.bias")),
    "mlp bias dropped": ("gpt2", _zero("layers.0.mlp.down.bias")),
    "norm bias dropped": ("gpt2", _zero("norm.bias")),
    "rope base doubled": ("llama-gqa", _with_attention(_doubled_base)),
    "linear scaling lost": ("llama-linear", _with_attention(_unscaled_rope)),
    "yarn scaling lost": ("llama-yarn", _with_attention(_unscaled_rope)),
    "llama3 scaling lost": ("llama-llama3", _with_attention(_unscaled_rope)),
    "window one wider": ("mistral-window", _with_attention(_wider)),
    "window one wider in some layers": ("qwen3-mixed-window", _with_attention(_wider)),
    "window lost in some layers": ("qwen2-window-from-layer-1", _with_attention(_full)),
    "head norms skipped": ("qwen3-gqa", _no_qk_norm),
    "gate and up swapped": ("llama-gqa", _swapped_gate_and_up),
    "positions shifted": ("gpt2", _shifted_positions),
    "K/V heads swapped": ("llama-gqa", _swapped_kv_heads),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, tiny: Callable[[str], Path]) -> None:
    name, plant = FAULTS[fault]
    decoder = plant(load_decoder(tiny(name), ops=TorchOps()).decoder)
    assert differences(dense_logits(decoder, prompts(decoder.spec.vocab_size)), expected(name)) != []
