"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama with biases on q, k and v.

Some layers may have sliding windows.
"""

from __future__ import annotations

from hasten.models.config import ConfigView
from hasten.models.llama_like import llama_like_family, llama_like_spec, qwen_sizes, qwen_windows
from hasten.models.spec import DecoderSpec


def read_spec(view: ConfigView) -> DecoderSpec:
    view.require_off(("use_mrope",))
    return llama_like_spec(
        view,
        vocab_size=151_936,
        intermediate_size=22_016,
        num_kv_heads=32,
        max_positions=32_768,
        windows=qwen_windows(view),
        qkv_bias=True,
    )


FAMILY = llama_like_family(read_spec, qwen_sizes)
