"""Which safetensors files of a folder hold which tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hasten.checkpoints.header import BadHeader, TensorEntry, read_header
from hasten.core.errors import CheckpointError, ModelNotFound

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def only_pickles(folder: Path, *readable: str) -> list[str]:
    """The pickle files of a folder that has none of these files, by name; none where there is something to read, or no folder."""
    if not folder.is_dir() or any((folder / name).is_file() for name in readable):
        return []
    return sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)


def read_shards(folder: Path, single: str = SINGLE) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint, by name.

    Raises ``CheckpointError`` that lists each missing or broken file and each tensor that the index promises and no file holds.
    """
    placed = {} if (folder / single).is_file() else _read_index(folder)
    names = sorted(set(placed.values())) or [single]
    faults, entries = [], {}
    for name in names:
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
            continue
        try:
            found = read_header(folder / name)
        except BadHeader as fault:
            faults.append(str(fault))
            continue
        entries.update({entry.name: entry for entry in found if placed.get(entry.name, name) == name})
        held = {entry.name for entry in found}
        faults += [
            f"{tensor} is not in {name}, where the index places it"
            for tensor, at in placed.items()
            if at == name and tensor not in held
        ]
    if faults:
        raise CheckpointError(
            f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the weights of {folder}: {'; '.join(faults)}",
            remedy="Download the checkpoint again: a file is damaged or incomplete",
        )
    return entries


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, of a sharded checkpoint."""
    file = folder / INDEX
    if not file.is_file():
        raise _no_weights(folder)
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON", got=error, remedy="Download the checkpoint again") from None
    placed = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(
            f"{file} has no rows_are_finite 'weight_map' from tensor names to files", remedy="Download the checkpoint again"
        )
    outside = sorted({name for name in placed.values() if Path(name).name != name or not name.endswith(".safetensors")})
    if outside:
        raise CheckpointError(
            f"{file} names files that are not safetensors files of its folder",
            got=", ".join(outside),
            remedy="Convert the checkpoint with transformers' save_pretrained",
        )
    return placed


def _no_weights(folder: Path) -> CheckpointError:
    others = sorted(file.name for file in folder.iterdir() if file.suffix in (*PICKLES, ".safetensors", ".gguf"))
    if any(name.endswith(PICKLES) for name in others) and not any(name.endswith(".safetensors") for name in others):
        return CheckpointError(
            f"{folder} has its weights in pickle files only, and pickle can run code when it is read, so hasten never does",
            got=", ".join(others),
            allowed=f"{SINGLE}, or shards with {INDEX}",
            remedy="Convert it with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        )
    return ModelNotFound(
        f"{folder} holds no weights",
        got=", ".join(others) or "no weight file",
        allowed=f"{SINGLE}, or shards with {INDEX}",
        remedy="Check the path, or download the checkpoint again",
    )
