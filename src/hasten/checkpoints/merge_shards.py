"""``merge_shards``: the tensors of many safetensors files, written again as one checkpoint.

The bytes are copied; no tensor is loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hasten.checkpoints.shards import INDEX, ITEM_BYTES, SINGLE, HeaderError, TensorEntry, list_faults, read_header
from hasten.core.errors import CheckpointError

MAX_SHARD_BYTES = 5 * 10**9
CHUNK_BYTES = 2**23  # that are in memory at a time


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor and where its bytes are."""

    entry: TensorEntry
    start: int  # in the file


def merge_shards(files: Sequence[Path], folder: Path, max_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the tensors of ``files`` into ``folder``, in the order of the files and of the data in them.

    ``folder`` gets ``model.safetensors``, or shards of at most ``max_bytes`` with an index as transformers writes them; a larger
    tensor has a shard of its own. The same files give the same bytes, and these are on the disk on return.
    Raises ``CheckpointError`` that lists damaged files, before it writes anything, and ``OSError``.
    """
    shards = _split(_read_parts(files), max_bytes)
    names = [SINGLE] if len(shards) == 1 else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for name, parts in zip(names, shards, strict=True):
        with (folder / name).open("wb") as target:
            _write_shard(target, parts)
            _sync(target)
    if len(shards) > 1:
        weight_map = {part.entry.name: name for name, parts in zip(names, shards, strict=True) for part in parts}
        total = sum(part.entry.nbytes for parts in shards for part in parts)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        with (folder / INDEX).open("wb") as target:
            target.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
            _sync(target)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the names of the files
    finally:
        os.close(handle)


def _read_parts(files: Sequence[Path]) -> list[_Part]:
    """Return the tensors of all files. Raises ``CheckpointError``."""
    parts: dict[str, _Part] = {}
    faults = []
    for file in files:
        try:
            entries = read_header(file)
        except HeaderError as error:
            faults.append(str(error))
            continue
        start = file.stat().st_size - sum(entry.nbytes for entry in entries)
        for entry in entries:
            if entry.name in parts:
                faults.append(f"{entry.name} is in {parts[entry.name].entry.file.name} and in {file.name}")
            parts[entry.name] = _Part(entry, start)
            start += entry.nbytes
    if faults:
        raise CheckpointError(f"files cannot be merged: {list_faults(faults)}", remedy="Delete them and write them again")
    return list(parts.values())


def _split(parts: Sequence[_Part], max_bytes: int) -> list[list[_Part]]:
    """Return the tensors of each shard; of none, one shard without tensors."""
    shards: list[list[_Part]] = [[]]
    size = 0
    for part in parts:
        if shards[-1] and size + part.entry.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += part.entry.nbytes
    # Large items first: then every tensor begins at a multiple of its item's size.
    return [sorted(shard, key=lambda part: -ITEM_BYTES[part.entry.dtype]) for shard in shards]


def _write_shard(target: BinaryIO, parts: Sequence[_Part]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for part in parts:
        start, stop = stop, stop + part.entry.nbytes
        header[part.entry.name] = {"dtype": part.entry.dtype, "shape": part.entry.shape, "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write(len(text).to_bytes(8, "little") + text)
    for part in parts:
        for chunk in _chunks(part):
            target.write(chunk)


def _chunks(part: _Part) -> Iterator[bytes]:
    """Yield the bytes of a tensor."""
    with part.entry.file.open("rb") as source:
        source.seek(part.start)
        left = part.entry.nbytes
        while left:
            chunk = source.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise CheckpointError(f"{part.entry.file} became shorter while it was copied", remedy="Run the command again")
            left -= len(chunk)
            yield chunk


def _sync(target: BinaryIO) -> None:
    target.flush()
    os.fsync(target.fileno())
