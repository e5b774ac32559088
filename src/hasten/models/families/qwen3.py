"""Qwen3 (Yang et al., 2025): Llama with a norm over each query and key head, and sliding windows in some layers if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.models.config import ConfigView
from hasten.models.family import ModelFamily
from hasten.models.llama_like import IGNORED, PREFIX, llama_like_spec, llama_like_weights, qwen_windows
from hasten.models.spec import DecoderSpec


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    view = ConfigView(config)
    attention_bias = view.flag("attention_bias", False)
    return llama_like_spec(
        view,
        family="qwen3",
        vocab_size=151_936,
        intermediate_size=22_016,
        num_kv_heads=32,
        max_positions=32_768,
        head_dim=128,
        windows=qwen_windows(view),
        qk_norm=True,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
    )


FAMILY = ModelFamily(spec, llama_like_weights, PREFIX, IGNORED)
