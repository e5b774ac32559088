"""``TensorFiles``: the tensors of a checkpoint's files, by name, read on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hasten.checkpoints.shards import TensorEntry
from hasten.core.errors import CheckpointError


class TensorFiles(Protocol):
    @property
    def folder(self) -> Path:
        """The checkpoint, for messages."""
        ...

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor, by name; ``TensorEntry.name`` may differ where a format has several names."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor, as a view of the memory-mapped file where possible: copy it and release it.

        Raises ``CheckpointError`` for a file that is not valid, or that has changed since its header was read.
        """
        ...


@dataclass(frozen=True, slots=True)
class SafetensorsFiles:
    folder: Path
    entries: Mapping[str, TensorEntry]
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)

    def read(self, name: str) -> Tensor:
        entry = self.entries[name]
        try:
            if entry.file not in self._open:
                self._open[entry.file] = safe_open(entry.file, framework="pt")
            tensor: Tensor = self._open[entry.file].get_tensor(entry.name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{entry.file} is not a valid safetensors file", got=error, remedy="Download it again") from None
        if tuple(tensor.shape) != entry.shape or tensor.nbytes != entry.nbytes:
            raise CheckpointError(
                f"{entry.file} changed while it was read",
                got=f"{entry.name} {list(tensor.shape)}",
                allowed=str(list(entry.shape)),
                remedy="Load it again when nothing writes to it",
            )
        return tensor
