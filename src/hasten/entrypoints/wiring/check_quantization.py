"""``check_quantization``: options for quantised checkpoints with others, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.layers.formats.stored_matrix import StoredMatrix


def check_quantization(options: EngineOptions, folder: Path) -> None:
    """Raise ``InvalidOption`` if an option does not suit the checkpoint: quantization or activations.

    Raises ``CheckpointError`` like ``Checkpoint.open``.
    """
    if options.quantization is None and options.activations == "auto":
        return
    matrices = Checkpoint.open(folder).matrices
    if not matrices:
        _refuse_activations(options, folder)
    elif options.quantization is not None:
        faster = "; activations='int8' quantises the input of products, which is faster and less exact"
        _refuse_quantization("quantization", options.quantization, folder, matrices, faster if _has_integers(matrices) else "")
    elif options.activations == "int8" and not _has_integers(matrices):
        raise InvalidOption(
            f"activations='int8' is for integer weights, and {folder} has none",
            got=next(iter(matrices.values())).spec.describe(),
            remedy="Leave activations out",
        )


def check_draft_quantization(options: EngineOptions, folder: Path) -> None:
    """Raise ``InvalidOption`` if ``draft_quantization`` would quantise a quantised draft model again.

    Raises ``CheckpointError`` like ``Checkpoint.open``.
    """
    if options.draft_quantization != "auto" and (matrices := Checkpoint.open(folder).matrices):
        _refuse_quantization("draft_quantization", options.draft_quantization, folder, matrices)


def _has_integers(matrices: Mapping[str, StoredMatrix]) -> bool:
    return any(matrix.spec.kind == "int" for matrix in matrices.values())


def _refuse_quantization(
    option: str, value: str, folder: Path, matrices: Mapping[str, StoredMatrix], other_remedy: str = ""
) -> None:
    scheme = next(iter(matrices.values())).spec.describe()
    raise InvalidOption(
        f"the weights of {folder} are already quantised, so {option} does not apply to them",
        got=f"{option}={value!r} for {scheme}",
        remedy=f"Leave {option} out{other_remedy}",
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
