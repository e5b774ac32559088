"""``OptimizationReport``: what an optimisation found, on items that nothing was chosen by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from hasten.checkpoints.json_values import read_json
from hasten.core.check_fields import check_fields
from hasten.core.errors import CheckpointError, InvalidOption, show
from hasten.core.field_type import MAX_FLOAT, Length, Range

Number = Annotated[float, Range(-MAX_FLOAT)]
Count = Annotated[int, Range(0, 2**53)]
Text = Annotated[str, Length(0, 4096)]
Bounds = Annotated[tuple[Number, ...], Length(2, 2)]  # of an interval of 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFigures:
    """One prompt: its scores, and what it costs per request."""

    validation: Number  # mean score
    validation_interval: Bounds | None  # None: a single item with a score that is not 0 or 1
    held_out: Number
    held_out_interval: Bounds | None
    prompt_tokens: Number  # mean of the held-out items
    prompt_seconds: Number  # until the first token of a prompt of median length, with nothing cached

    def __post_init__(self) -> None:
        check_fields(self, "figure", InvalidOption)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationSummary:
    method: Text
    metric: Text
    model: Text
    is_changed: bool  # whether the method found a better prompt than the initial one
    is_soft: bool  # whether a soft prompt stands before the text
    num_train: Count  # items
    num_validation: Count
    num_held_out: Count
    difference: Number  # held-out score of the best prompt minus that of the initial one
    difference_interval: Bounds | None
    is_real: bool  # whether the interval excludes zero
    optimization_tokens: Count  # computed by the method
    report_tokens: Count  # of both prompts on validation and held-out items
    num_earlier_reads: Count  # other optimisations that have read the same held-out items

    def __post_init__(self) -> None:
        check_fields(self, "figure", InvalidOption)


@dataclass(frozen=True, slots=True)
class OptimizationReport:
    summary: OptimizationSummary
    initial: PromptFigures
    best: PromptFigures

    def as_dict(self) -> dict[str, Any]:
        prompts = {"initial": dataclasses.asdict(self.initial), "best": dataclasses.asdict(self.best)}
        return {**dataclasses.asdict(self.summary), **prompts}


def read_report(file: Path) -> OptimizationReport:
    """Return the report of a file. Raises ``InvalidOption`` if it is damaged."""
    try:
        values = read_json(file)
        prompts = [_made(PromptFigures, values.pop(name, None)) for name in ("initial", "best")]
        return OptimizationReport(_made(OptimizationSummary, values), *prompts)
    except (CheckpointError, InvalidOption) as fault:
        remedy = "Give another folder, or remove this one"
        raise InvalidOption(f"the report {file} is damaged: {fault.what}", got=fault.got, remedy=remedy) from None


def report_json(report: OptimizationReport) -> str:
    return json.dumps(report.as_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _made(kind: type[Any], values: object) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, Mapping) or values.keys() != names:
        got = sorted(values.keys() ^ names)[0] if isinstance(values, Mapping) else values
        raise InvalidOption("a key is missing or has no meaning", got=show(got))
    return kind(**values)
