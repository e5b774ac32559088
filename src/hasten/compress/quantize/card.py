"""``build_card``: the model card of a quantisation, without figures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.checkpoints.hub import SHIPPED
from hasten.compress.model_card import CalibrationText, ModelCard
from hasten.compress.quantize.calibration import calibration_digest
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.recipe import Recipe
from hasten.compress.source_license import source_license

SHIPPED_TEXT = "the calibration text that ships with hasten"
# Fields of ``QuantizeOptions`` that the card says in other words, or that change nothing.
_ELSEWHERE = (
    "method",
    "format",
    "bits",
    "group_size",
    "samples",
    "seq_len",
    "seed",
    "threads",
    "dtype",
    "symmetric",
    "activations",
)


def build_card(
    model: str,
    source: Path,
    out: Path,
    options: QuantizeOptions,
    recipe: Recipe,
    *,
    method_options: Mapping[str, Any] | None = None,
    calibration: Path | None = None,
    ids_BS: Tensor | None = None,
    results: Mapping[str, object] | None = None,
) -> ModelCard:
    """Return the card. ``results`` are further lines of the recipe, such as the bits of each layer."""
    values = dataclasses.asdict(options)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    others = {name: value for name, value in values.items() if name not in _ELSEWHERE and value != defaults[name]}
    text = None
    if ids_BS is not None:
        name = SHIPPED_TEXT if calibration is None else calibration.name
        text = CalibrationText(
            name=name, sha256=calibration_digest(ids_BS), samples=len(ids_BS), seq_len=ids_BS.shape[1], seed=options.seed
        )
    is_mixed = results is not None
    return ModelCard(
        name=out.name,
        base_model=base_model(model),
        license=source_license(source),
        method=options.method,
        format=options.format,
        bits=None if is_mixed else recipe.spec.bits,
        group_size=None if is_mixed else recipe.spec.group_size,
        options={"scheme": recipe.spec.describe(), **others, **(method_options or {}), **(results or {})},
        calibration=text,
    )


def base_model(model: str) -> str | None:
    """Return the hub id of a model that was given by one."""
    return model if "/" in model and not os.path.exists(os.path.expanduser(model)) and model not in SHIPPED else None
