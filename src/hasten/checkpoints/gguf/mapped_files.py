"""``MappedFiles``: the bytes of a GGUF model's tensors, mapped into memory when the first is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.gguf.container import GgufTensor
from hasten.core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class MappedFiles:
    sizes: Mapping[Path, int]  # when the headers were read
    _open: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def read(self, tensor: GgufTensor) -> Tensor:
        """Return the bytes of a tensor as a view of the file, uint8.

        Raises ``CheckpointError`` for a file that was removed or changed since its header was read.
        """
        file = tensor.file
        if file not in self._open:
            self._open[file] = self._map(file)
        return self._open[file][tensor.start : tensor.start + tensor.nbytes]

    def _map(self, file: Path) -> Tensor:
        size = self.sizes[file]
        try:
            if os.stat(file).st_size != size:
                raise CheckpointError(f"{file} changed while it was read", remedy="Load it again when nothing writes to it")
            return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8, device="cpu")
        except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError for what the system refuses
            raise CheckpointError(f"{file} cannot be read", got=str(error).splitlines()[0], remedy="Check the file") from None
