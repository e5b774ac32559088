"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama with biases on q, k and v, and sliding windows in some layers if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.models.config import ConfigView
from hasten.models.family import ModelFamily
from hasten.models.llama_like import IGNORED, PREFIX, llama_like_spec, llama_like_weights, qwen_windows
from hasten.models.spec import DecoderSpec


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    view = ConfigView(config)
    view.require_off(("use_mrope",))
    return llama_like_spec(
        view,
        family="qwen2",
        vocab_size=151_936,
        intermediate_size=22_016,
        num_kv_heads=32,
        max_positions=32_768,
        windows=qwen_windows(view),
        qkv_bias=True,
    )


FAMILY = ModelFamily(spec, llama_like_weights, PREFIX, IGNORED)
