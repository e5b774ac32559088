"""``CompressedModel``: a new checkpoint and what it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.model_card import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedModel:
    folder: Path
    source: Path
    card: ModelCard  # the recipe, without figures
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files' tensors."""
        return tensor_bytes(self.folder)

    @property
    def original_nbytes(self) -> int:
        return tensor_bytes(self.source)


def tensor_bytes(folder: Path) -> int:
    """Return the bytes of all tensors of a checkpoint."""
    checkpoint = Checkpoint.open(folder)
    names: Iterable[str] = (*checkpoint.tensors, *checkpoint.matrices)
    return sum(checkpoint.nbytes(name) for name in names)
