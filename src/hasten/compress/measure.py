"""``measure``: size, speed and quality of a compressed model against its original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hasten.compress.compressed_model import CompressedModel
from hasten.compress.model_card import BATCH, Figures
from hasten.core.errors import HastenError
from hasten.entrypoints.decode_speed import DecodeSpeed, measure_speed
from hasten.entrypoints.evaluation import Evaluation, evaluate
from hasten.quality.quality import Quality
from hasten.quality.window import NUM_TOKENS

SHIPPED_TEXT = "held-out text"
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Measurement:
    nbytes: int
    original_nbytes: int
    evaluations: tuple[Evaluation, ...]  # on the shipped text, then on the user's
    speed: DecodeSpeed | None
    original_speed: DecodeSpeed | None
    batch_speed: DecodeSpeed | None = None  # of ``BATCH`` requests at a time
    original_batch_speed: DecodeSpeed | None = None
    num_parameters: int | None = None
    original_num_parameters: int | None = None
    missing: str | None = None  # why the quality or the speed of the original is not known

    def figures(self, machine: str) -> Figures:
        """Return what a model card reports; ``machine`` is where the speed was measured."""
        first = self.evaluations[0] if self.evaluations else None
        return Figures(
            bytes_before=self.original_nbytes,
            bytes_after=self.nbytes,
            quality=None if first is None else first.quality,
            text=None if first is None else first.text,
            other_texts={Path(evaluation.text).name: evaluation.quality for evaluation in self.evaluations[1:]},
            parameters_before=self.original_num_parameters,
            parameters_after=self.num_parameters,
            tokens_per_second_before=_median(self.original_speed),
            tokens_per_second_after=_median(self.speed),
            batch_tokens_per_second_before=_median(self.original_batch_speed),
            batch_tokens_per_second_after=_median(self.batch_speed),
            machine=machine,
        )

    def rows(self, size: Callable[[int], str]) -> list[tuple[str, str, str]]:
        """Return (what, original, compressed); ``size`` formats bytes."""
        rows = []
        if self.num_parameters is not None and self.original_num_parameters is not None:
            share = self.num_parameters / self.original_num_parameters
            rows.append(("parameters", f"{self.original_num_parameters:,}", f"{self.num_parameters:,} ({share:.1%})"))
        rows.append(("weights", size(self.original_nbytes), f"{size(self.nbytes)} ({self.nbytes / self.original_nbytes:.1%})"))
        for evaluation in self.evaluations:
            rows += _quality_rows(
                evaluation.quality, SHIPPED_TEXT if evaluation is self.evaluations[0] else Path(evaluation.text).name
            )
        speeds = {1: (self.original_speed, self.speed), BATCH: (self.original_batch_speed, self.batch_speed)}
        for batch, (original, compressed) in speeds.items():
            if compressed is not None:
                rows.append((f"tokens/s, batch {batch}", "-" if original is None else _speed(original), _speed(compressed)))
        return rows


def measure(
    model: CompressedModel,
    *,
    text: Path | None = None,
    num_tokens: int = NUM_TOKENS,
    threads: int | None = None,
    visible: bool = True,
) -> Measurement:
    """Compare a compressed model with its original in float32, on the shipped text and on ``text``.

    The compressed model runs as ``LLM`` runs it by default. What cannot be measured, such as a model that does not fit in memory or
    has no tokenizer, is left out, with the reason.
    """
    options: dict[str, Any] = {"show_progress": visible} | ({} if threads is None else {"threads": threads})
    compressed, original = str(model.folder), str(model.source)
    faults: list[str] = []

    def attempt(measured: Callable[[], Result]) -> Result | None:
        try:
            return measured()
        except HastenError as error:
            faults.append(str(error))
            return None

    speed, batch_speed = (attempt(partial(measure_speed, compressed, options, batch=batch)) for batch in (1, BATCH))
    evaluations: list[Evaluation] = []
    for file in (None, *([] if text is None else [text])):
        evaluation = attempt(partial(evaluate, compressed, options, against=original, text=file, num_tokens=num_tokens))
        if evaluation is None:
            break
        evaluations.append(evaluation)
    original_speed, original_batch_speed = (attempt(partial(measure_speed, original, options, batch=n)) for n in (1, BATCH))
    return Measurement(
        model.nbytes,
        model.original_nbytes,
        tuple(evaluations),
        speed,
        original_speed,
        batch_speed,
        original_batch_speed,
        attempt(lambda: model.num_parameters),
        attempt(lambda: model.original_num_parameters),
        " ".join(dict.fromkeys(faults)) or None,
    )


def _quality_rows(quality: Quality, text: str) -> list[tuple[str, str, str]]:
    interval = quality.kl_interval
    kl = f"{quality.kl_mean:.4f}" + ("" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})")
    return [
        (f"{text}: mean KL, nats", "0", kl),
        (f"{text}: top-1 agreement", "100 %", f"{quality.top1_agreement:.2%}"),
        (f"{text}: perplexity", f"{quality.reference_perplexity:.4f}", f"{quality.candidate_perplexity:.4f}"),
    ]


def _median(speed: DecodeSpeed | None) -> float | None:
    return None if speed is None else speed.median


def _speed(speed: DecodeSpeed) -> str:
    return f"{speed.median:.1f} ({min(speed.runs):.1f} to {max(speed.runs):.1f})"
