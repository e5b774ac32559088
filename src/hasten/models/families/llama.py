"""Llama 2 and 3, and the many models of their shape (Touvron et al., 2023; Llama team, 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.models.config import ConfigView
from hasten.models.family import ModelFamily
from hasten.models.llama_like import IGNORED, PREFIX, llama_like_spec, llama_like_weights
from hasten.models.spec import DecoderSpec


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    view = ConfigView(config)
    attention_bias = view.flag("attention_bias", False)
    return llama_like_spec(
        view,
        family="llama",
        vocab_size=32_000,
        intermediate_size=11_008,
        num_kv_heads=None,
        max_positions=2_048,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=view.flag("mlp_bias", False),
    )


FAMILY = ModelFamily(spec, llama_like_weights, PREFIX, IGNORED)
