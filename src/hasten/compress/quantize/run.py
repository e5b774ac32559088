"""``run_method``: the method that the options name, whatever its kind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.compress.cast import cast_checkpoint
from hasten.compress.compressed_model import CompressedModel
from hasten.compress.quantize.mixed.quantize import quantize_mixed
from hasten.compress.quantize.options import AUTO, CAST, QuantizeOptions
from hasten.compress.quantize.quantize import Progress, ShouldStop, quantize


def run_method(
    model: str,
    out: Path,
    options: QuantizeOptions,
    *,
    method_options: Mapping[str, Any] | None = None,
    calibration: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    should_stop: ShouldStop = lambda: False,
) -> CompressedModel | None:
    """Write a compressed copy of a model to the new folder ``out``. See ``quantize``."""
    if options.method == CAST:
        return _cast(model, out, options, progress)
    method = quantize_mixed if options.method == AUTO else quantize
    return method(
        model,
        out,
        options,
        method_options=method_options,
        calibration=calibration,
        resume=resume,
        progress=progress,
        should_stop=should_stop,
    )


def _cast(model: str, out: Path, options: QuantizeOptions, progress: Progress | None) -> CompressedModel:
    started = time.monotonic()
    source = resolve(model, quiet=progress is None)
    report = cast_checkpoint(source, out, options.dtype, progress=progress)
    return CompressedModel(
        folder=out,
        source=source,
        summary=(("method", "cast"), ("dtype", report.dtype)),
        seconds=time.monotonic() - started,
    )
