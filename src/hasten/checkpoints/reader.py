"""``Checkpoint``: a model folder on disk, checked when it is opened. It knows files and tensors and no architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hasten.checkpoints.header import TensorEntry
from hasten.checkpoints.shards import SINGLE, read_shards
from hasten.core.errors import CheckpointError, ModelNotFound


@dataclass(frozen=True, slots=True)
class Checkpoint:
    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]  # empty when the folder has none
    tensors: Mapping[str, TensorEntry]  # by name; an entry may have another name in its file, if a format has several
    _files: dict[Path, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path, *, single: str = SINGLE) -> Checkpoint:
        """Reads the configuration and every shard's header; no tensor yet. ``single``: the file of weights that are in one.

        Raises ``ModelNotFound`` for a folder that is not there or holds no model, and ``CheckpointError`` for one that is broken,
        has only pickled weights, or wants to run its own code.
        """
        if not folder.is_dir():
            raise ModelNotFound("there is no such model folder", got=str(folder), remedy="Check the path")
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} has no config.json, so it is not a model folder", remedy="Check the path")
        config = read_table(folder / "config.json")
        _refuse_code(folder, config)
        generation = folder / "generation_config.json"
        return cls(folder, config, read_table(generation) if generation.is_file() else {}, read_shards(folder, single))

    def read(self, name: str) -> Tensor:
        """One tensor, as a view of the memory-mapped file where safetensors gives one: copy it, and let it go.

        Raises ``CheckpointError`` for a file that safetensors does not accept.
        """
        entry = self.tensors[name]
        file = entry.file
        try:
            if file not in self._files:
                self._files[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._files[file].get_tensor(entry.name)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a sound safetensors file", got=error, remedy="Download it again") from None
        return tensor


def read_table(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ``CheckpointError``."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON", got=error, remedy="Download the checkpoint again") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{file} is not a JSON object", got=type(table).__name__, remedy="Download the checkpoint again")
    return table


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("auto_map"):
        raise CheckpointError(
            f"{folder} wants to run Python code of its own ('auto_map' in config.json), which hasten never does",
            got=config["auto_map"],
            remedy="Use a checkpoint of an architecture that transformers itself contains, or remove 'auto_map' if it is one",
        )
