"""Mistral (Jiang et al., 2023): Llama with one sliding window over all layers, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.models.config import ConfigView
from hasten.models.family import ModelFamily
from hasten.models.llama_like import IGNORED, PREFIX, llama_like_spec, llama_like_weights
from hasten.models.spec import DecoderSpec


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    view = ConfigView(config)
    view.require_off(("layer_types",))  # mixed windows are another family, "ministral"
    window = view.optional_integer("sliding_window", 4_096)
    return llama_like_spec(
        view,
        family="mistral",
        vocab_size=32_000,
        intermediate_size=14_336,
        num_kv_heads=8,
        max_positions=131_072,
        windows=[window] * view.integer("num_hidden_layers", 32),
    )


FAMILY = ModelFamily(spec, llama_like_weights, PREFIX, IGNORED)
