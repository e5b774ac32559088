"""``run_method``: the method that the options name, whatever its kind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.compress.cast import cast_checkpoint
from hasten.compress.compressed_model import CompressedModel
from hasten.compress.model_card import DENSE, ModelCard, write_model_card
from hasten.compress.new_folder import new_target
from hasten.compress.quantize.card import base_model
from hasten.compress.quantize.mixed.quantize import quantize_mixed
from hasten.compress.quantize.options import AUTO, CAST, QuantizeOptions
from hasten.compress.quantize.quantization_run import Progress, ShouldStop, Steps, Stopped
from hasten.compress.quantize.quantize import quantize
from hasten.compress.source_license import source_license
from hasten.core.errors import InvalidOption
from hasten.training.set_threads import set_threads


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
        if method_options:
            given = ", ".join(method_options)
            raise InvalidOption("the method cast has no options", got=given, remedy="Omit them, or choose another method")
        return _cast(model, out, options, progress, should_stop)
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


def _cast(
    model: str, out: Path, options: QuantizeOptions, progress: Progress | None, should_stop: ShouldStop
) -> CompressedModel | None:
    started = time.monotonic()
    set_threads(options.threads)
    source, target = resolve(model, quiet=progress is None), new_target(out)

    def tick(done: int, total: int) -> None:
        Steps(total, progress, should_stop).advance_to(done)

    try:
        report = cast_checkpoint(source, target, options.dtype, progress=tick)
    except Stopped:
        return None
    rounding = {f"largest relative error of {name}": f"{error:.3g}" for name, error in report.relative_errors.items()}
    card = ModelCard(
        name=target.name,
        base_model=base_model(model),
        license=source_license(source),
        method=CAST,
        format=DENSE,
        bits=None,
        options={"dtype": report.dtype, **rounding, "weights that became 0": report.num_zeroed},
    )
    write_model_card(target, card)
    return CompressedModel(
        folder=target,
        source=source,
        card=card,
        seconds=time.monotonic() - started,
    )
