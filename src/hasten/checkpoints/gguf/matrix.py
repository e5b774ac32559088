"""``GgufMatrix``: a quantised matrix of a GGUF file. It implements ``StoredMatrix``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.checkpoints.gguf.blocks import BLOCK_FORMATS
from hasten.checkpoints.gguf.container import GgufTensor
from hasten.checkpoints.gguf.mapped_files import MappedFiles
from hasten.core.errors import CheckpointError
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows


@dataclass(frozen=True, slots=True)
class GgufMatrix:
    name: str
    shape: tuple[int, int]
    tensor: GgufTensor
    files: MappedFiles
    interleaved_dim: int | None = None  # head dim of a matrix whose heads have interleaved rows

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.tensor.name,)

    @property
    def spec(self) -> QuantSpec:
        return BLOCK_FORMATS[self.tensor.type.name].spec

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def input_order(self) -> None:
        """Return None: inputs are in order."""

    def rows(self, start: int, stop: int) -> GroupedRows:
        """Decode the outputs ``[start, stop)``.

        Raises ``CheckpointError`` for scales that are NaN or infinite.
        """
        stored_OB = self.files.read(self.tensor).view(self.shape[0], -1)
        dim = self.interleaved_dim
        raw_OB = stored_OB[start:stop] if dim is None else stored_OB[interleaved_rows(start, stop, dim)]
        rows = BLOCK_FORMATS[self.tensor.type.name].rows(raw_OB.reshape(-1, self.tensor.type.nbytes), len(raw_OB))
        for values in (rows.scales_OG, rows.offsets_OG):
            if values is not None and not bool(values.isfinite().all()):
                raise CheckpointError(
                    f"the tensor {self.tensor.name} of {self.tensor.file} has scales that are NaN or infinite",
                    remedy="Download the file again, or quantise the model again",
                )
        return rows


def interleaved_rows(start: int, stop: int, head_dim: int) -> Tensor:
    """Return which stored rows are the rows ``[start, stop)`` of q or k, int64.

    llama.cpp's converter stores the rows 0, D/2, 1, D/2 + 1, ... of each head of D rows, so that the two that the rotary embedding
    turns together are neighbours.
    """
    rows = torch.arange(start, stop, dtype=torch.int64, device="cpu")
    within = rows % head_dim
    half = head_dim // 2
    return rows - within + 2 * (within % half) + within // half
