"""Qwen3 (Yang et al., 2025): Llama with a norm over each query and key head.

Some layers may have sliding windows.
"""

from __future__ import annotations

from hasten.models.config import ConfigView
from hasten.models.llama_like import llama_like_family, llama_like_spec, qwen_sizes, qwen_windows
from hasten.models.spec import DecoderSpec


def read_spec(view: ConfigView) -> DecoderSpec:
    attention_bias = view.flag("attention_bias", False)
    return llama_like_spec(
        view,
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


FAMILY = llama_like_family(read_spec, qwen_sizes)
