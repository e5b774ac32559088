"""Llama 2 and 3, and models of the same architecture (Touvron et al., 2023; Llama team, 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.models.config import ConfigView
from hasten.models.llama_like import llama_like_family, llama_like_sizes, llama_like_spec
from hasten.models.spec import DecoderSpec


def read_spec(view: ConfigView) -> DecoderSpec:
    attention_bias = view.flag("attention_bias", False)
    return llama_like_spec(
        view,
        vocab_size=32_000,
        intermediate_size=11_008,
        num_kv_heads=None,
        max_positions=2_048,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=view.flag("mlp_bias", False),
    )


def with_sizes(config: Mapping[str, Any], spec: DecoderSpec) -> dict[str, Any]:
    """Return the configuration with the sizes of ``spec``; of a Mistral if a Llama cannot have them.

    transformers demands of a Llama that the heads divide the hidden size. A Mistral without a window computes the same as a Llama
    without biases.
    """
    sized = llama_like_sizes(config, spec)
    if _is_divisible(spec):
        return sized
    defaults = {"vocab_size": spec.vocab_size, "max_position_embeddings": 2_048, "hidden_act": "silu", "rms_norm_eps": 1e-6}
    given = {name: value for name, value in sized.items() if value is not None and name not in ("attention_bias", "mlp_bias")}
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    return {**defaults, **given, **mistral}


def sizes_fault(spec: DecoderSpec) -> str | None:
    layer = spec.layers[0]
    if _is_divisible(spec) or not (layer.attention.qkv_bias or layer.mlp.bias):
        return None
    return "a hidden size that is a multiple of the number of heads, as transformers demands of a Llama"


def _is_divisible(spec: DecoderSpec) -> bool:
    return spec.hidden_size % spec.layers[0].attention.num_heads == 0


FAMILY = llama_like_family(read_spec, with_sizes, sizes_fault)
