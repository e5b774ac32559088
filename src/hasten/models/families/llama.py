"""Llama 2 and 3, and models of the same architecture (Touvron et al., 2023; Llama team, 2024)."""

from __future__ import annotations

from hasten.models.config import ConfigView
from hasten.models.llama_like import llama_like_family, llama_like_spec
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


FAMILY = llama_like_family(read_spec)
