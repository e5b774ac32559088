"""Mistral (Jiang et al., 2023): Llama with one sliding window in all layers, or none."""

from __future__ import annotations

from hasten.models.config import ConfigView
from hasten.models.llama_like import llama_like_family, llama_like_spec
from hasten.models.spec import DecoderSpec


def read_spec(view: ConfigView) -> DecoderSpec:
    view.require_off(("layer_types",))  # mixed windows are another family, "ministral"
    window = view.optional_integer("sliding_window", 4_096)
    return llama_like_spec(
        view,
        vocab_size=32_000,
        intermediate_size=14_336,
        num_kv_heads=8,
        max_positions=131_072,
        windows=[window] * view.num_layers("num_hidden_layers", 32),
    )


FAMILY = llama_like_family(read_spec)
