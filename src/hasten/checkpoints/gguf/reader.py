"""``read_gguf``: the settings, plain tensors and quantised matrices of a GGUF file.

All have their Hugging Face names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.checkpoints.gguf.blocks import BLOCK_FORMATS
from hasten.checkpoints.gguf.config import find_architecture, read_config, read_generation_config
from hasten.checkpoints.gguf.container import GgufFile, GgufTensor
from hasten.checkpoints.gguf.dtype import choose_dtype
from hasten.checkpoints.gguf.mapped_files import MappedFiles
from hasten.checkpoints.gguf.matrix import GgufMatrix, interleaved_rows
from hasten.checkpoints.gguf.names import ROPE_FACTORS, TensorLayout, find_layout, is_ignored
from hasten.checkpoints.gguf.plain_tensor import PLAIN_DTYPES, read_plain
from hasten.checkpoints.shards import TensorEntry, list_faults
from hasten.core.errors import CheckpointError, UnsupportedModel, show

MAX_ROPE_FACTORS = 2**16  # half a head dim


@dataclass(frozen=True, slots=True)
class GgufTensors:
    """The plain tensors of a GGUF file. It implements ``TensorFiles``."""

    folder: Path  # the file
    entries: Mapping[str, TensorEntry]
    _stored: Mapping[str, tuple[GgufTensor, TensorLayout]]
    _files: MappedFiles
    _head_dim: int

    def read(self, name: str) -> Tensor:
        tensor, layout = self._stored[name]
        values = read_plain(tensor, self._files)
        if layout.interleaved:
            values = values[interleaved_rows(0, len(values), self._head_dim)]
        return values.T if layout.transposed else values


@dataclass(frozen=True, slots=True)
class GgufModel:
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: GgufTensors
    matrices: dict[str, GgufMatrix]


def read_gguf(file: GgufFile) -> GgufModel:
    """Return the model in a GGUF file. Of its data, only vectors are read.

    Raises ``UnsupportedModel`` for architectures, settings and tensors that hasten does not know, and ``CheckpointError`` for a
    broken file.
    """
    architecture, files = find_architecture(file), MappedFiles(file.sizes)
    files_now = MappedFiles(file.sizes)  # released here: a mapping does not see that its file changes
    config = read_config(file, _read_rope_factors(file, files_now))
    layouts = _find_layouts(file, architecture)
    head_dim = config.get("head_dim")
    entries, stored, matrices = {}, {}, {}
    for tensor, layout in layouts:
        if layout.interleaved and (type(head_dim) is not int or head_dim < 2 or head_dim % 2 or tensor.shape[0] % head_dim):
            raise CheckpointError(
                f"the rows of {tensor.name} of {file.path} are no whole heads",
                got=f"{tensor.shape[0]:,} rows and head dim {show(head_dim)}",
                allowed="an even head dim that divides the rows",
                remedy="Convert the original model again",
            )
        if tensor.type.name in BLOCK_FORMATS:
            size = (tensor.shape[0], tensor.shape[1])
            matrices[layout.name] = GgufMatrix(layout.name, size, tensor, files, head_dim if layout.interleaved else None)
        else:
            shape = tensor.shape[::-1] if layout.transposed else tensor.shape
            entries[layout.name] = TensorEntry(tensor.name, tensor.file, tensor.type.name, shape, tensor.nbytes)
            stored[layout.name] = (tensor, layout)
    config["dtype"] = choose_dtype((tensor for tensor, _ in layouts), files_now)
    tensors = GgufTensors(file.path, entries, stored, files, head_dim if type(head_dim) is int else 0)
    return GgufModel(config, read_generation_config(file), tensors, matrices)


def _find_layouts(file: GgufFile, architecture: str) -> list[tuple[GgufTensor, TensorLayout]]:
    """Return the tensors that hold weights.

    Raises ``UnsupportedModel`` with a list of those that hasten cannot read.
    """
    layouts, unknown, unreadable = [], [], []
    for name, tensor in file.tensors.items():
        if is_ignored(name):
            continue
        layout = find_layout(architecture, name)
        is_block = tensor.type.name in BLOCK_FORMATS
        if layout is None:
            unknown.append(show(name))
        elif tensor.type.name not in PLAIN_DTYPES and (not is_block or len(tensor.shape) != 2):
            unreadable.append(f"{show(name)} {list(tensor.shape)} is {tensor.type.name}")
        else:
            layouts.append((tensor, layout))
    if unknown:
        raise UnsupportedModel(
            f"{file.path} has tensors that hasten does not know in an architecture {architecture!r}", got=list_faults(unknown)
        )
    if unreadable:
        raise UnsupportedModel(
            f"{file.path} has tensors of types that hasten does not read: {list_faults(unreadable)}",
            allowed=f"matrices of {', '.join(BLOCK_FORMATS)}; any tensor of {', '.join(PLAIN_DTYPES)}",
            remedy="Use a file of another quantisation, such as Q4_K_M or Q8_0",
        )
    return layouts


def _read_rope_factors(file: GgufFile, files: MappedFiles) -> list[float] | None:
    """Return the divisors of the rotary frequencies that Llama 3.1 and later store as a tensor."""
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.type.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > MAX_ROPE_FACTORS:
        raise CheckpointError(
            f"{ROPE_FACTORS} of {file.path} is no list of factors",
            got=f"{tensor.type.name} {list(tensor.shape)}",
            allowed=f"F32 with one dimension of up to {MAX_ROPE_FACTORS:,}",
            remedy="Convert the original model again",
        )
    factors: list[float] = read_plain(tensor, files).tolist()
    return factors
