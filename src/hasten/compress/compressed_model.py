"""``CompressedModel``: a new checkpoint and what it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.model_card import ModelCard
from hasten.compress.prune.shape import num_parameters
from hasten.models.load import read_spec


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

    @property
    def num_parameters(self) -> int:
        """Weights of the decoder, tied embeddings counted once. Raises ``CheckpointError``."""
        return num_parameters(read_spec(Checkpoint.open(self.folder)))

    @property
    def original_num_parameters(self) -> int:
        return num_parameters(read_spec(Checkpoint.open(self.source)))


def tensor_bytes(folder: Path) -> int:
    """Return the bytes of all tensors of a checkpoint."""
    checkpoint = Checkpoint.open(folder)
    names: Iterable[str] = (*checkpoint.tensors, *checkpoint.matrices)
    return sum(checkpoint.nbytes(name) for name in names)
