"""The header of a safetensors file, checked against the file's real length.

::

    [ 8 bytes: n, little-endian ][ n bytes: JSON {name: {dtype, shape, data_offsets [a, b)}} ][ data ]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

MAX_HEADER_BYTES = 100_000_000
DTYPES_OF_SIZE = {
    1: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"),
    2: ("U16", "I16", "F16", "BF16"),
    4: ("U32", "I32", "F32"),
    8: ("U64", "I64", "F64"),
}
ITEM_BYTES = {dtype: size for size, dtypes in DTYPES_OF_SIZE.items() for dtype in dtypes}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    name: str
    file: Path
    dtype: str  # as safetensors writes it: "BF16"
    shape: tuple[int, ...]
    nbytes: int


class BadHeader(Exception):
    """This file is not a whole safetensors file; the text says why. ``Checkpoint.open`` gathers these into its own error."""


def read_header(file: Path) -> tuple[TensorEntry, ...]:
    """The tensors of one file. Raises ``BadHeader`` with every fault that was found."""
    length = file.stat().st_size
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(length - 8, MAX_HEADER_BYTES):
            raise BadHeader(f"{file.name}: the header needs {size + 8:,} bytes and the file has {length:,}")
        try:
            header = json.loads(stream.read(size))
        except (ValueError, RecursionError) as error:
            raise BadHeader(f"{file.name}: the header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise BadHeader(f"{file.name}: the header is not a table of tensors")
    header.pop("__metadata__", None)
    entries, faults, spans = [], [], []
    for name, value in header.items():
        fault = _fault(value)
        if fault is not None:
            faults.append(f"{file.name}: {name}: {fault}")
            continue
        start, stop = value["data_offsets"]
        spans.append((start, stop))
        entries.append(TensorEntry(name, file, value["dtype"], tuple(value["shape"]), stop - start))
    end = max((stop for _, stop in spans), default=0)
    if not faults and any(stop != start for (_, stop), (start, _) in pairwise([(0, 0), *sorted(spans)])):
        faults.append(f"{file.name}: its tensors overlap or leave a gap")
    if not faults and 8 + size + end != length:
        faults.append(f"{file.name}: its tensors need {8 + size + end:,} bytes and the file has {length:,}")
    if faults:
        raise BadHeader("; ".join(faults))
    return tuple(entries)


def _fault(value: object) -> str | None:
    """What is wrong with one tensor's description."""
    if not isinstance(value, Mapping) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        return "its description is not complete"
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"unknown dtype {dtype!r}"
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"shape {shape} and offsets {offsets} do not describe a tensor"
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        return f"shape {shape} of {dtype} needs {needed:,} bytes and {offsets[1] - offsets[0]:,} are stored"
    return None


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
