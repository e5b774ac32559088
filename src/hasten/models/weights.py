"""``WeightMap``: which checkpoint tensor fills which rows of which parameter; checking and loading the tensors.

The map is read forwards to load a checkpoint and backwards to save one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.layers.formats.base import WeightFormat

# The dtypes of stored tensors that can be loaded, and their names in PyTorch.
STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}
MAX_LISTED = 20  # faults that an error message lists; the rest is counted

Progress = Callable[[int, int], None]  # (bytes read, total bytes)


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Checkpoint tensor ``name`` fills rows ``[start, stop)`` of parameter ``target``; stored [in, out] when ``transposed``."""

    name: str
    target: str  # as in ``Decoder.named_parameters()``
    start: int = 0
    stop: int | None = None  # None: all rows from ``start``
    transposed: bool = False

    def rows(self, module: nn.Module) -> Tensor:
        """Return the rows of the parameter of ``module`` that this tensor fills, as a view."""
        return module.get_parameter(self.target)[self.start : self.stop]


WeightMap = tuple[WeightSource, ...]


def fused(names: Sequence[str], sizes: Sequence[int], target: str) -> WeightMap:
    """Map several tensors to consecutive rows of one parameter."""
    sources, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        sources.append(WeightSource(name, target, start, start + size))
        start += size
    return tuple(sources)


def check_tensors(
    checkpoint: Checkpoint, sources: WeightMap, module: nn.Module, *, described_by: str, ignored: Collection[str] = ()
) -> None:
    """Raise ``CheckpointError`` unless the checkpoint has exactly the tensors that ``sources`` need to fill ``module``.

    The error lists the tensors that are missing, unexpected, of another shape or of an unreadable dtype. ``ignored`` tensors may be
    there. ``described_by`` says what determines the tensors.
    """
    faults = [fault for source in sources if (fault := _mismatch(source, checkpoint, module)) is not None]
    expected = {*ignored, *(source.name for source in sources)}
    faults += [f"{name} {list(entry.shape)} is not expected" for name, entry in checkpoint.tensors.items() if name not in expected]
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise CheckpointError(
            f"the tensors of {checkpoint.folder} do not fit {described_by} "
            f"({len(faults)} fault{'s' if len(faults) > 1 else ''}): {'; '.join(faults[:MAX_LISTED])}{more}",
            remedy="Check that config.json belongs to these weights, and download the checkpoint again if it does",
        )


def _mismatch(source: WeightSource, checkpoint: Checkpoint, module: nn.Module) -> str | None:
    """Describe why the tensor cannot fill its parameter; None if it can."""
    entry = checkpoint.tensors.get(source.name)
    shape = list(source.rows(module).shape)
    if source.transposed:
        shape.reverse()
    if entry is None:
        return f"{source.name} {shape} is missing"
    if list(entry.shape) != shape:
        return f"{source.name} is {list(entry.shape)}, expected {shape}"
    if entry.dtype not in STORED_DTYPES:
        return f"{source.name} is {entry.dtype}, expected {' or '.join(STORED_DTYPES)}"
    return None


def load_weights(module: nn.Module, checkpoint: Checkpoint, sources: WeightMap, progress: Progress | None) -> None:
    """Read every tensor of ``sources`` into its parameter of ``module``."""
    total = sum(checkpoint.tensors[source.name].nbytes for source in sources)
    done = 0
    for source in sources:
        path, _, part = source.target.rpartition(".")
        tensor = checkpoint.read(source.name)
        if path.endswith(".format"):
            weight_format = cast("WeightFormat", module.get_submodule(path))
            weight_format.load(part, tensor, slice(source.start, source.stop), transposed=source.transposed)
        else:
            source.rows(module).copy_(tensor)
        done += checkpoint.tensors[source.name].nbytes
        if progress is not None:
            progress(done, total)
