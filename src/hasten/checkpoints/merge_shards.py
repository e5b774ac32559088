"""``merge_shards``: the tensors of many safetensors files, written again as one checkpoint.

The bytes are copied; no tensor is loaded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.checkpoints.shards import SINGLE, HeaderError, TensorEntry, list_faults, read_header
from hasten.checkpoints.streamed_shards import write_index, write_shard
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
    parts = _read_parts(files)
    shards = _split([part.entry for part in parts.values()], max_bytes)
    names = [SINGLE] if len(shards) == 1 else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for name, entries in zip(names, shards, strict=True):
        write_shard(folder / name, entries, lambda entry: _chunks(parts[entry.name]))
    if len(shards) > 1:
        placed = zip(names, shards, strict=True)
        write_index(folder, [dataclasses.replace(entry, file=folder / name) for name, entries in placed for entry in entries])
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the names of the files
    finally:
        os.close(handle)


def _read_parts(files: Sequence[Path]) -> dict[str, _Part]:
    """Return the tensors of all files by name. Raises ``CheckpointError``."""
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
    return parts


def _split(entries: Sequence[TensorEntry], max_bytes: int) -> list[list[TensorEntry]]:
    """Return the tensors of each shard; of none, one shard without tensors."""
    shards: list[list[TensorEntry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


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
