"""``write_shard``: a safetensors file whose tensors are never in memory together.

``write_index`` names the tensors of several files. The library's own writer takes all tensors of a file at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.shards import INDEX, ITEM_BYTES, TensorEntry

_ALIGNMENT = 8  # bytes, of the data in a file


def write_shard(file: Path, entries: Sequence[TensorEntry], chunks: Callable[[TensorEntry], Iterable[Tensor | bytes]]) -> None:
    """Write tensors of the names, shapes and dtypes of ``entries``. They are on the disk on return.

    ``chunks(entry)`` gives the values of a tensor, in its dtype and order, in any number of parts. Tensors of wide items come
    first, so that each begins at a multiple of its item's size. Raises ``OSError``.
    """
    ordered = sorted(entries, key=lambda entry: -ITEM_BYTES[entry.dtype])
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-len(table) % _ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(table).to_bytes(8, "little") + table)
        for entry in ordered:
            written = sum(stream.write(content) for content in _bytes(chunks(entry)))
            assert written == entry.nbytes, entry.name
        stream.flush()
        os.fsync(stream.fileno())


def write_index(folder: Path, entries: Iterable[TensorEntry]) -> None:
    """Write the index of the shards that ``entries`` name, to the disk. Raises ``OSError``."""
    listed = list(entries)
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in listed)},
        "weight_map": {entry.name: entry.file.name for entry in sorted(listed, key=lambda entry: entry.name)},
    }
    with (folder / INDEX).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(index, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _bytes(chunks: Iterable[Tensor | bytes]) -> Iterator[memoryview | bytes]:
    for chunk in chunks:
        if isinstance(chunk, bytes):
            yield chunk
        elif chunk.numel():
            yield chunk.contiguous().flatten().view(torch.uint8).numpy().data
