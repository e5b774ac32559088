"""``Checkpoint``: a model folder or a GGUF file on disk, checked when it is opened.

It knows files and tensors, and no architecture.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.gguf.reader import read_gguf
from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.quantized.find import find_matrices, kv_cache_scales
from hasten.checkpoints.shards import SINGLE, TensorEntry, count_faults, list_faults, read_shards
from hasten.checkpoints.tensor_files import SafetensorsFiles, TensorFiles
from hasten.core.errors import CheckpointError, ModelNotFound
from hasten.layers.formats.stored_matrix import StoredMatrix

FLOAT_DTYPES = ("F32", "BF16", "F16", "F64")
QUANTIZED = "quantised"  # of an expected tensor: it is one of ``Checkpoint.matrices``

ExpectedTensor = tuple[tuple[int, ...], tuple[str, ...]]  # shape, allowed dtypes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The configuration and the tensor entries of a model folder or a GGUF file.

    Tensors are read on demand.
    """

    folder: Path  # or the GGUF file
    config: dict[str, Any]
    generation_config: dict[str, Any]  # empty if there is none
    files: TensorFiles
    tensors: Mapping[str, TensorEntry]  # by name, without those of ``matrices``
    matrices: Mapping[str, StoredMatrix] = field(default_factory=dict)  # the quantised ones, by the name of the weight
    gguf: GgufFile | None = None  # None: a folder

    @classmethod
    def open(cls, folder: Path, *, single: str = SINGLE) -> Checkpoint:
        """Read the configuration and every shard's header.

        ``folder`` may be a GGUF file, the first part of a split one. ``single`` is the name of an unsharded weights file.

        Raises ``ModelNotFound`` for a folder that is missing or holds no model. Raises ``CheckpointError`` for a broken model,
        pickled weights, or a model that needs its own code.
        """
        if is_gguf(folder):
            file = GgufFile.open(folder)
            model = read_gguf(file)
            return cls(folder, model.config, model.generation_config, model.tensors, model.tensors.entries, model.matrices, file)
        if not os.path.isdir(folder):
            raise ModelNotFound("there is no such model folder", got=str(folder), remedy="Check the path")
        if not os.path.isfile(folder / "config.json"):
            raise ModelNotFound(f"{folder} has no config.json, so it is not a model folder", remedy="Check the path")
        config = read_json(folder / "config.json")
        if config.get("auto_map"):
            raise CheckpointError(
                f"{folder} needs its own Python code ('auto_map' in config.json), which hasten never runs",
                got=config["auto_map"],
                remedy="Use a checkpoint of an architecture that transformers includes, or remove 'auto_map' if it is one",
            )
        generation = folder / "generation_config.json"
        files = SafetensorsFiles(folder, read_shards(folder, single))
        matrices = find_matrices(config, files)
        parts = {part for matrix in matrices.values() for part in matrix.parts} | kv_cache_scales(config, files)
        tensors = {name: entry for name, entry in files.entries.items() if name not in parts}
        return cls(folder, config, read_json(generation) if os.path.lexists(generation) else {}, files, tensors, matrices)

    def read(self, name: str) -> Tensor:
        """Return one tensor, as ``TensorFiles.read`` does."""
        return self.files.read(name)

    def has(self, name: str) -> bool:
        """Whether a weight of this name is stored, quantised or not."""
        return name in self.tensors or name in self.matrices

    @property
    def config_name(self) -> str:
        """What holds the configuration, for messages."""
        return settings_name(self.folder)

    @property
    def mismatch_remedy(self) -> str:
        """What helps if the tensors are not those of the configuration."""
        if self.gguf is not None:
            return "Download the file again, or convert the original model again"
        return "Check that config.json belongs to these weights; if it does, download or train them again"

    @property
    def num_weights(self) -> int:
        """How many tensors and quantised matrices there are."""
        return len(self.tensors) + len(self.matrices)

    def nbytes(self, name: str) -> int:
        """Return the bytes of one weight in the file."""
        return self.matrices[name].nbytes if name in self.matrices else self.tensors[name].nbytes

    def check_tensors(self, expected: Mapping[str, ExpectedTensor], contents: str) -> None:
        """Raise ``CheckpointError`` listing missing and unexpected tensors, and wrong shapes and dtypes."""
        faults = [f"{name} {list(shape)} is missing" for name, (shape, _) in expected.items() if not self.has(name)]
        stored = {name: (entry.name, entry.shape, entry.dtype) for name, entry in self.tensors.items()}
        stored |= {name: (matrix.name, matrix.shape, QUANTIZED) for name, matrix in self.matrices.items()}
        for key, (name, stored_shape, dtype) in stored.items():
            shape, dtypes = expected.get(key, (None, ()))
            if shape is None:
                faults.append(f"{name} {list(stored_shape)} is not expected")
            elif stored_shape != shape:
                faults.append(f"{name} is {list(stored_shape)}, expected {list(shape)}")
            elif dtype not in dtypes:
                faults.append(f"{name} is {dtype}, expected {' or '.join(dtypes)}")
        if faults:
            raise CheckpointError(
                f"the tensors of {self.folder} are not those of {contents} ({count_faults(faults)}): {list_faults(faults)}",
                remedy=self.mismatch_remedy,
            )


def settings_name(folder: Path, name: str = "config.json") -> str:
    """Return the file ``name`` of a model folder, or what a GGUF file has in its place, for messages."""
    return f"the metadata of {folder}" if is_gguf(folder) else f"{name} of {folder}"
