"""``build_card``: the model card of a pruned model, without figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from hasten.compress.model_card import DENSE, FINETUNE, CalibrationText, ModelCard
from hasten.compress.prune.gradual import RoundResult
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.shape import Shape
from hasten.compress.quantize.calibration import calibration_digest
from hasten.compress.quantize.card import SHIPPED_TEXT, base_model
from hasten.compress.source_license import source_license

ZEROS = "Zeros bring no speed by themselves: engines multiply them as other weights, and the file has the same size."
# Fields of ``PruneOptions`` that the card says in other words, or that change nothing.
_ELSEWHERE = ("method", "parts", "samples", "seq_len", "seed", "threads")
_RECOVERY = ("recover_lr", "recover_batch")  # without effect unless the model recovers


def build_card(
    model: str,
    source: Path,
    out: Path,
    options: PruneOptions,
    *,
    calibration: Path | None,
    ids_BS: Tensor | None,
    results: Mapping[str, object],
    notes: Sequence[str] = (),
) -> ModelCard:
    """Return the card. ``results`` are further lines of the recipe, such as the sizes."""
    values = dataclasses.asdict(options)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    others = {name: value for name, value in values.items() if name not in _ELSEWHERE and value != defaults[name]}
    if options.recovers:
        others |= {name: values[name] for name in _RECOVERY}
    parts = {"parts": ", ".join(options.parts)} if options.is_structured else {}
    text = None
    if ids_BS is not None:
        name = SHIPPED_TEXT if calibration is None else calibration.name
        digest = calibration_digest(ids_BS)
        text = CalibrationText(name=name, sha256=digest, samples=len(ids_BS), seq_len=ids_BS.shape[1], seed=options.seed)
    return ModelCard(
        name=out.name,
        base_model=base_model(model),
        relation=FINETUNE,
        license=source_license(source),
        method=options.method,
        format=DENSE,
        bits=None,
        options={**parts, **others, **results},
        calibration=text,
        notes=notes,
    )


def size_lines(before: Shape, after: Shape) -> dict[str, str]:
    """Return a line for each size that changed."""
    lines = {}
    for field in dataclasses.fields(Shape):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old != new:
            lines[field.name.replace("num_", "").replace("_", " ")] = f"{old:,} before, {new:,} now"
    return lines


def round_lines(rounds: Sequence[RoundResult], text: str) -> dict[str, str]:
    """Return a line for each round that trained on ``text``."""
    lines = {"recovery text": text}
    for number, result in enumerate(rounds, 1):
        if result.kl is not None:
            lines[f"round {number}"] = result.describe()
    return lines
