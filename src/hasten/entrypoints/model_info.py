"""``ModelInfo``: what the caller's side knows of a loaded model. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.engine_options import EngineOptions
from hasten.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedThreshold:
    """The threshold of an exit rule that keeps a relative increase of perplexity."""

    rule: str
    tolerance: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitInfo:
    """The early exits of an engine."""

    num_layers: int  # of the model
    are_trained: bool = False
    table_rules: tuple[str, ...] = ()  # exit rules whose table was trained: "token_table", "prompt_hash"
    calibrations: tuple[CalibratedThreshold, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """``description``: the model, its kernels and its memory, as ``LLM.describe`` returns them."""

    model: str  # as it was named
    folder: str  # or the GGUF file; its tokenizer and its chat template are read from here
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    defaults: SamplingParams
    options: EngineOptions
    exits: ExitInfo
    description: Mapping[str, Any]
