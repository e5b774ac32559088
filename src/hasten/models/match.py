"""Whether the tensors of a checkpoint are those that the decoder needs, before any of them is read."""

from __future__ import annotations

import dataclasses
import re

from torch import nn

from hasten.checkpoints.header import TensorEntry
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.models.family import ModelFamily
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap, WeightSource

READABLE = ("F32", "BF16", "F16", "F64")
SHOWN = 20  # faults written out in full; the rest is counted


def match(checkpoint: Checkpoint, family: ModelFamily, spec: DecoderSpec, decoder: nn.Module) -> WeightMap:
    """The family's weight map with the names that this checkpoint uses.

    Raises ``CheckpointError`` that lists the tensors that are missing, unexpected, of another shape or of an unreadable dtype.
    """
    sources = _present_names(checkpoint, family, family.weights(spec))
    faults = [fault for source in sources if (fault := unfit(source, checkpoint, decoder)) is not None]
    known = {source.name for source in sources}
    harmless = (*family.ignored, *(re.escape(name) for name in _tied_names(family, spec)))
    bare = not any(name.startswith(family.prefix) for name in checkpoint.tensors)
    for name, entry in checkpoint.tensors.items():
        full = family.prefix + name if bare and name != "lm_head.weight" else name
        if name not in known and not any(re.fullmatch(pattern, full) for pattern in harmless):
            faults.append(f"{name} {list(entry.shape)} is not expected")
    if faults:
        rest = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise CheckpointError(
            f"the tensors of {checkpoint.folder} do not fit its {spec.family} configuration "
            f"({len(faults)} fault{'s' if len(faults) > 1 else ''}): {'; '.join(faults[:SHOWN])}{rest}",
            remedy="Check that config.json belongs to these weights, and download the checkpoint again if it does",
        )
    return sources


def _present_names(checkpoint: Checkpoint, family: ModelFamily, sources: WeightMap) -> WeightMap:
    """Without the prefix when no tensor has it; the embedding read from a tied projection when only that one is stored."""
    tensors = checkpoint.tensors
    if not any(name.startswith(family.prefix) for name in tensors):
        sources = tuple(dataclasses.replace(source, name=source.name.removeprefix(family.prefix)) for source in sources)
    if "lm_head.weight" not in {source.name for source in sources} and "lm_head.weight" in tensors:
        sources = tuple(
            dataclasses.replace(source, name="lm_head.weight")
            if source.target == "embedding.format.weight" and source.name not in tensors
            else source
            for source in sources
        )
    return sources


def _tied_names(family: ModelFamily, spec: DecoderSpec) -> set[str]:
    """What an untied decoder of this family would need beside this one: a copy of the embedding."""
    untied = family.weights(dataclasses.replace(spec, tied=False))
    return {source.name for source in untied} - {source.name for source in family.weights(spec)}


def unfit(source: WeightSource, checkpoint: Checkpoint, module: nn.Module) -> str | None:
    """Why this tensor cannot fill the parameter of ``module`` that it is for; None if it can."""
    entry: TensorEntry | None = checkpoint.tensors.get(source.name)
    shape = list(module.get_parameter(source.target).shape)
    if source.rows is not None:
        shape[0] = source.rows[1] - source.rows[0]
    if source.transposed:
        shape.reverse()
    if entry is None:
        return f"{source.name} {shape} is missing"
    if list(entry.shape) != shape:
        return f"{source.name} is {list(entry.shape)}, expected {shape}"
    if entry.dtype not in READABLE:
        return f"{source.name} is {entry.dtype}, expected {' or '.join(READABLE)}"
    return None
