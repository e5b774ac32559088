"""``GgufFile``: the metadata and the tensor table of a GGUF file, or of all parts of a split one.

::

    [ "GGUF" ][ u32 version ][ u64 tensors ][ u64 values ]
    [ key, u32 type, value ] ...                              metadata
    [ name, u32 dims, u64 dim ..., u32 type, u64 offset ] ... tensors; the fastest dim comes first
    [ padding to ``general.alignment`` ][ data ]              offsets count from here

It knows no architecture and decodes no weights. The format is described in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hasten.checkpoints.gguf.ggml_types import GGML_TYPES, GgmlType
from hasten.checkpoints.gguf.gguf_path import MAGIC
from hasten.checkpoints.gguf.value_reader import MAX_KEY, GgufError, ValueReader
from hasten.checkpoints.shards import count_faults, list_faults
from hasten.core.errors import CheckpointError, ModelNotFound, UnsupportedModel, show

VERSIONS = (2, 3)
MAX_HEADER = 2**28  # bytes before the data; half a million strings take 20 MB
MAX_TENSORS, MAX_VALUES = 2**17, 2**16
MAX_DIMS = 4
MIN_TENSOR_BYTES, MIN_VALUE_BYTES = 8 + 4 + 8 + 4 + 8, 8 + 4 + 1  # of an item in the tables
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 2**20
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies. Its last dimension is a whole number of blocks."""

    name: str
    file: Path
    type: GgmlType
    shape: tuple[int, ...]  # as in PyTorch: the fastest dimension last
    start: int  # byte in the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The metadata of the first part, and the tensors of all parts by name. Array values are lists."""

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, GgufTensor]
    sizes: Mapping[Path, int]  # bytes of each part

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header of a file, and those of all parts if ``path`` is the first part of a split file.

        Raises ``ModelNotFound`` for a missing file, ``UnsupportedModel`` for a version or a number type that hasten does not know,
        and ``CheckpointError`` that lists every missing, broken or inconsistent part.
        """
        if not os.path.isfile(path):  # opening a pipe would wait for a writer
            raise ModelNotFound("there is no such GGUF file", got=str(path), remedy="Check the path")
        try:
            parts = [_read_part(path)]
        except GgufError as error:
            raise CheckpointError(f"{path} cannot be read as GGUF: {error}", remedy="Download it again") from None
        faults = []
        for file in _other_parts(path, parts[0].metadata):
            try:
                parts.append(_read_part(file))
            except GgufError as error:
                faults.append(f"{file.name}: {error}")
        faults = faults or _find_faults(parts)
        if faults:
            raise CheckpointError(
                f"{count_faults(faults)} in the parts of {path}: {list_faults(faults)}",
                remedy="Download all parts of the model again, into one folder",
            )
        tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
        return cls(path, parts[0].metadata, tensors, {part.path: part.size for part in parts})


@dataclass(frozen=True, slots=True)
class _Part:
    """The header of one file."""

    path: Path
    size: int
    metadata: dict[str, object]
    tensors: list[GgufTensor]


def _read_part(path: Path) -> _Part:
    if not os.path.isfile(path):
        raise GgufError("it is missing")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < len(MAGIC) or stream.read(len(MAGIC)) != MAGIC:
                raise GgufError("it does not begin with 'GGUF'")
            with mmap.mmap(stream.fileno(), min(size, MAX_HEADER), access=mmap.ACCESS_READ) as header:
                return _read_header(path, size, ValueReader(header, len(MAGIC)))
    except (OSError, ValueError) as error:
        raise GgufError(f"it cannot be read ({error})") from None


def _read_header(path: Path, size: int, reader: ValueReader) -> _Part:
    version = reader.u32()
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        raise UnsupportedModel(
            f"{path} is a GGUF file of {'big-endian numbers' if swapped else 'another version'}",
            got=None if swapped else f"version {version}",
            allowed=f"versions {' and '.join(map(str, VERSIONS))}, little-endian",
            remedy="Convert the original model again with llama.cpp's convert_hf_to_gguf.py",
        )
    num_tensors = reader.count("tensors", MIN_TENSOR_BYTES)
    num_values = reader.count("metadata values", MIN_VALUE_BYTES)
    if num_tensors > MAX_TENSORS or num_values > MAX_VALUES:
        raise GgufError(f"it has {num_tensors:,} tensors and {num_values:,} metadata values")
    metadata: dict[str, object] = {}
    for _ in range(num_values):
        key = reader.string("a metadata key", MAX_KEY)
        if key in metadata:
            raise GgufError(f"the metadata key {show(key)} occurs twice")
        metadata[key] = reader.value(show(key))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {show(alignment)}, and not a power of two up to {MAX_ALIGNMENT:,}")
    table = [_read_tensor(path, reader) for _ in range(num_tensors)]
    data_start = -(-reader.position // alignment) * alignment
    tensors = [
        GgufTensor(name, path, kind, shape, data_start + offset, math.prod(shape) // kind.weights * kind.nbytes)
        for name, kind, shape, offset in table
    ]
    _check_spans(tensors, data_start, alignment, size)
    return _Part(path, size, metadata, tensors)


def _read_tensor(path: Path, reader: ValueReader) -> tuple[str, GgmlType, tuple[int, ...], int]:
    """Return name, type, shape and offset of one tensor."""
    name = reader.string("a tensor name", MAX_KEY)
    num_dims = reader.u32()
    if not 1 <= num_dims <= MAX_DIMS:
        raise GgufError(f"the tensor {show(name)} has {num_dims} dimensions, and 1 to {MAX_DIMS} are allowed")
    shape = tuple(reader.u64() for _ in range(num_dims))[::-1]
    type_number, offset = reader.u32(), reader.u64()
    kind = GGML_TYPES.get(type_number)
    if kind is None:
        raise UnsupportedModel(
            f"the tensor {show(name)} of {path} has a number type that hasten does not know",
            got=f"type {type_number}",
            allowed=", ".join(kind.name for kind in GGML_TYPES.values()),
            remedy="Use a file with one of the quantisations that hasten reads, such as Q4_K_M or Q8_0",
        )
    if min(shape) < 1:
        raise GgufError(f"the tensor {show(name)} has the empty shape {list(shape)}")
    if shape[-1] % kind.weights:
        raise GgufError(
            f"the rows of {show(name)} have {shape[-1]:,} weights, no multiple of the {kind.weights} in a {kind.name} block"
        )
    return name, kind, shape, offset


def _check_spans(tensors: list[GgufTensor], data_start: int, alignment: int, size: int) -> None:
    """Raise ``GgufError`` for tensors that share a name or bytes, lie unaligned or beyond the end."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise GgufError("two of its tensors have one name")
    for tensor in tensors:
        if (tensor.start - data_start) % alignment:
            raise GgufError(f"the tensor {show(tensor.name)} is not aligned to {alignment} bytes")
        if tensor.start + tensor.nbytes > size:
            needed = tensor.start + tensor.nbytes
            raise GgufError(f"the tensor {show(tensor.name)} ends at byte {needed:,} and the file has {size:,}")
    for first, second in pairwise(sorted(tensors, key=lambda tensor: tensor.start)):
        if first.start + first.nbytes > second.start:
            raise GgufError(f"the tensors {show(first.name)} and {show(second.name)} overlap")


def _other_parts(path: Path, metadata: Mapping[str, object]) -> list[Path]:
    """Return the paths of the parts after the first, which need not exist. Raises ``CheckpointError``."""
    number, count = metadata.get("split.no", 0), metadata.get("split.count", 1)
    if count in (0, 1):
        return []
    name = _PART.fullmatch(path.name)
    if type(count) is not int or count < 0 or name is None or int(name["count"]) != count:
        raise CheckpointError(
            f"{path} is part of a split GGUF file and its name does not fit",
            got=f"split.count={show(count)}",
            allowed="names that end in -00001-of-00003.gguf, with the number of the part and the number of parts",
            remedy="Give the parts the names that they were published under",
        )
    parts = [path.with_name(f"{name['stem']}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1)]
    if number != 0 or path != parts[0]:
        raise CheckpointError(
            f"{path} is not the first part of a split GGUF file",
            got=f"split.no={show(number)}",
            remedy=f"Give the first: {parts[0]}",
        )
    return parts[1:]


def _find_faults(parts: list[_Part]) -> list[str]:
    """Return how complete parts contradict each other."""
    faults = []
    count = parts[0].metadata.get("split.count", 1)
    for index, part in enumerate(parts[1:], 1):
        number, own_count = part.metadata.get("split.no"), part.metadata.get("split.count")
        if number != index or own_count != count:
            faults.append(f"{part.path.name} says that it is part {show(number)} of {show(own_count)}, counted from 0")
    names: dict[str, Path] = {}
    for part in parts:
        faults += [f"{show(tensor.name)} is in two parts" for tensor in part.tensors if tensor.name in names]
        names |= {tensor.name: part.path for tensor in part.tensors}
    expected = parts[0].metadata.get("split.tensors.count")
    if len(parts) > 1 and expected is not None and expected != len(names):
        faults.append(f"the first part announces {show(expected)} tensors and the parts hold {len(names):,}")
    return faults
