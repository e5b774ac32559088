"""``check_quantization``: options for quantised checkpoints with others, and the reverse."""

from __future__ import annotations

from pathlib import Path

from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption


def check_quantization(options: EngineOptions, checkpoint: Checkpoint) -> None:
    """Raise ``InvalidOption`` if an option does not suit the checkpoint: quantization or activations."""
    if not checkpoint.matrices:
        _refuse_activations(options, checkpoint.folder)
    elif options.quantization is not None:
        _refuse_quantization("quantization", options.quantization, checkpoint)


def check_draft_quantization(options: EngineOptions, checkpoint: Checkpoint) -> None:
    """Raise ``InvalidOption`` if ``draft_quantization`` would quantise a quantised draft model again."""
    if options.draft_quantization != "auto" and checkpoint.matrices:
        _refuse_quantization("draft_quantization", options.draft_quantization, checkpoint)


def _refuse_quantization(option: str, value: str, checkpoint: Checkpoint) -> None:
    scheme = next(iter(checkpoint.matrices.values())).spec.describe()
    raise InvalidOption(
        f"the weights of {checkpoint.folder} are already quantised, so {option} does not apply to them",
        got=f"{option}={value!r} for {scheme}",
        remedy=f"Leave {option} out; activations='int8' quantises the input of products, which is faster and less exact",
    )


def _refuse_activations(options: EngineOptions, folder: Path) -> None:
    if options.activations == "auto":
        return
    suffix = "-weight-only" if options.activations == "float" else ""
    raise InvalidOption(
        f"activations is for quantised checkpoints, and the weights of {folder} are not quantised",
        got=f"activations={options.activations!r}",
        remedy=f"Quantise them while they load: --quantization int8{suffix} or int4{suffix}",
    )
