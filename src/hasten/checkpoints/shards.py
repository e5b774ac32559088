"""The safetensors files of a folder: reading and checking their headers and index, and writing them.

::

    [ 8 bytes: n, little-endian ][ n bytes: JSON {name: {dtype, shape, data_offsets [a, b)}} ][ data ]
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hasten.checkpoints.gguf.gguf_path import SUFFIX
from hasten.checkpoints.json_values import MAX_JSON_BYTES, are_integers, are_strings, parse_json, read_json
from hasten.checkpoints.write_tensors import write_tensors
from hasten.core.errors import CheckpointError, ModelNotFound

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_DIMENSIONS = 8  # of a tensor
MAX_LISTED = 20  # faults that an error message lists; the rest is counted
DTYPES_OF_SIZE = {
    1: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
    2: ("U16", "I16", "F16", "BF16"),
    4: ("U32", "I32", "F32"),
    8: ("U64", "I64", "F64"),
}
ITEM_BYTES = {dtype: size for size, dtypes in DTYPES_OF_SIZE.items() for dtype in dtypes}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor in a safetensors file."""

    name: str  # in the file
    file: Path
    dtype: str  # as safetensors writes it: "BF16"
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The checked header of a safetensors file."""

    content: bytes  # as stored
    metadata: object  # unchecked
    entries: tuple[TensorEntry, ...]  # in the order of their data, which has no gaps

    @property
    def data_start(self) -> int:
        """Where the first tensor begins in the file."""
        return 8 + len(self.content)


class HeaderError(Exception):
    """The file is not a complete safetensors file; the message says why. ``read_shards`` collects these."""


def refuse_pickles(folder: Path, *readable: str, remedy: str) -> None:
    """Raise ``CheckpointError`` for a folder of pickle files without a file of a ``readable`` pattern."""
    names = file_names(folder) if os.path.isdir(folder) else []
    if any(fnmatch(name, pattern) for name in names for pattern in readable):
        return
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise CheckpointError(
            f"{folder} has only pickle files, which can run code when they are read, so hasten never reads them",
            got=", ".join(pickles),
            allowed=" or ".join(readable),
            remedy=remedy,
        )


def read_shards(folder: Path, single: str = SINGLE) -> dict[str, TensorEntry]:
    """Return every tensor of the checkpoint, by name. ``single`` is the name of an unsharded weights file.

    Raises ``CheckpointError`` that lists every missing or broken file and every tensor that its file lacks.
    """
    weight_map = {} if os.path.isfile(folder / single) else _read_index(folder)
    files: dict[str, list[str]] = {} if weight_map else {single: []}  # file -> the tensors that the index names for it
    for tensor, file in weight_map.items():
        files.setdefault(file, []).append(tensor)
    faults, entries = [], {}
    for name, indexed in sorted(files.items()):
        if not os.path.isfile(folder / name):
            faults.append(f"{name} is missing")
            continue
        try:
            header = {entry.name: entry for entry in read_header(folder / name)}
        except HeaderError as error:
            faults.append(str(error))
            continue
        entries.update({tensor: entry for tensor, entry in header.items() if weight_map.get(tensor, name) == name})
        faults += [f"{tensor} is not in {name}, which the index names for it" for tensor in indexed if tensor not in header]
    if faults:
        raise CheckpointError(
            f"{count_faults(faults)} in the weights of {folder}: {list_faults(faults)}",
            remedy="Download the checkpoint again: a file is damaged or incomplete",
        )
    return entries


def count_faults(faults: Sequence[str]) -> str:
    return f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"


def list_faults(faults: Sequence[str]) -> str:
    """Return the first faults as a list in text, and the number of the others."""
    more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    return "; ".join(faults[:MAX_LISTED]) + more


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, indent: int = 1) -> None:
    """Write ``model.safetensors`` and ``config.json``, indented by ``indent``.

    A crash leaves the files that were there before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, table = folder / f"{SINGLE}.partial", folder / "config.json.partial"
    write_tensors({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, weights)
    table.write_text(json.dumps(config, indent=indent) + "\n", encoding="utf-8")
    os.replace(weights, folder / SINGLE)
    os.replace(table, folder / "config.json")


def read_header(file: Path) -> tuple[TensorEntry, ...]:
    """Return the tensors of one file, in the order of their data. Raises ``HeaderError`` with every fault."""
    if not os.path.isfile(file):  # opening a pipe would wait for a writer
        raise HeaderError(f"{file.name} is not a readable file")
    try:
        with file.open("rb") as stream:
            return read_stream_header(stream, file).entries
    except OSError as error:
        raise HeaderError(f"{file.name} cannot be read ({error.strerror})") from None


def read_stream_header(stream: BinaryIO, file: Path, max_bytes: int = MAX_JSON_BYTES) -> Header:
    """Return the header of an open file, read from its begin. Raises ``HeaderError`` and ``OSError``.

    ``max_bytes``: of the header.
    """
    file_size = os.fstat(stream.fileno()).st_size
    header_size = int.from_bytes(stream.read(8), "little")
    if header_size > file_size - 8:
        raise HeaderError(f"{file.name}: the header needs {header_size + 8:,} bytes and the file has {file_size:,}")
    if header_size > max_bytes:
        raise HeaderError(f"{file.name}: the header has {header_size:,} bytes and may have {max_bytes:,}")
    content = stream.read(header_size)
    try:
        header = parse_json(content)
    except ValueError as error:
        raise HeaderError(f"{file.name}: the header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise HeaderError(f"{file.name}: the header is not a table of tensors")
    metadata = header.pop("__metadata__", None)
    faults = [f"{file.name}: {name}: {fault}" for name, value in header.items() if (fault := _find_fault(value)) is not None]
    if faults:
        raise HeaderError(list_faults(faults))
    spans = [(0, 0), *sorted(tuple(value["data_offsets"]) for value in header.values())]
    if any(stop != start for (_, stop), (start, _) in pairwise(spans)):
        raise HeaderError(f"{file.name}: its tensors overlap or leave a gap")
    needed = 8 + header_size + spans[-1][1]
    if needed != file_size:
        raise HeaderError(f"{file.name}: its tensors need {needed:,} bytes and the file has {file_size:,}")
    entries = tuple(
        TensorEntry(name, file, value["dtype"], tuple(value["shape"]), value["data_offsets"][1] - value["data_offsets"][0])
        for name, value in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    )
    return Header(content, metadata, entries)


def _find_fault(value: object) -> str | None:
    """Return what is wrong with the description of one tensor."""
    if not isinstance(value, Mapping) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        return "its description is not complete"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"unknown dtype {dtype!r}"
    is_shape = are_integers(shape, 0) and len(shape) <= MAX_DIMENSIONS
    if not is_shape or not are_integers(offsets, 0) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"shape {shape} and offsets {offsets} do not describe a tensor"
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        return f"shape {shape} of {dtype} needs {needed:,} bytes and {offsets[1] - offsets[0]:,} are stored"
    return None


def file_names(folder: Path) -> list[str]:
    """Return the names of the files of a folder, sorted. Raises ``CheckpointError``."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read", got=error.strerror, remedy="Check its permissions") from None


def _read_index(folder: Path) -> dict[str, str]:
    """Return the file name of every tensor of a sharded checkpoint."""
    file = folder / INDEX
    if not os.path.isfile(file):
        remedy = "Convert it with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        refuse_pickles(folder, "*.safetensors", remedy=remedy)
        others = [name for name in file_names(folder) if name.endswith((*PICKLES, ".safetensors", SUFFIX))]
        gguf = next((name for name in others if name.endswith(SUFFIX)), None)
        raise ModelNotFound(
            f"{folder} has no weights",
            got=", ".join(others) or "no weight file",
            allowed=f"{SINGLE}, or shards with {INDEX}",
            remedy=f"Give the GGUF file: {folder / gguf}" if gguf else "Check the path, or download the checkpoint again",
        )
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not are_strings(list(weight_map.values())):
        raise CheckpointError(
            f"{file} has no valid 'weight_map' from tensor names to files", remedy="Download the checkpoint again"
        )
    outside = sorted({name for name in weight_map.values() if Path(name).name != name or not name.endswith(".safetensors")})
    if outside:
        raise CheckpointError(
            f"{file} names files that are not safetensors files of its folder",
            got=", ".join(outside[:MAX_LISTED]),
            remedy="Convert the checkpoint with transformers' save_pretrained",
        )
    return weight_map
