"""``cast_checkpoint``: a checkpoint's floating-point weights in another dtype.

The weights stay in the memory-mapped files: one chunk of one tensor is in memory at a time.

Shape suffix: N values of a tensor, in its order.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.finite_weights import finite_weights
from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.quantized.scheme_name import quantization_settings, scheme_name
from hasten.checkpoints.reader import FLOAT_DTYPES, Checkpoint
from hasten.checkpoints.shards import ITEM_BYTES, SINGLE, TensorEntry, count_faults, list_faults
from hasten.checkpoints.side_files import copy_side_files
from hasten.checkpoints.streamed_shards import write_index, write_shard
from hasten.compress.new_folder import new_folder
from hasten.core.errors import InvalidOption, nearest
from hasten.layers.formats.base import check_finite
from hasten.ops.native_dtype import native_dtype

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # as safetensors writes them
NAMES = {"F64": "float64"} | {stored: name for name, stored in STORED.items()}
SMALLEST = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074}  # above 0
CHUNK = 1 << 20  # values that are converted at a time: a few times the cache
FLOAT16_MAX = 65_504.0

Progress = Callable[[int, int], None]  # (bytes read, total bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CastReport:
    dtype: str  # of the result
    num_tensors: int  # that have floating-point values
    bytes_before: int  # of all tensors
    bytes_after: int
    relative_errors: Mapping[str, float]  # largest |cast - w| / |w|, by the dtype of w in the source
    num_zeroed: int  # weights that are too small for the dtype and became 0


def cast_checkpoint(source: Path, out: Path, dtype: str, *, progress: Progress | None = None) -> CastReport:
    """Write the model folder ``source`` to ``out`` with its weights in ``dtype``, and return what changed.

    ``dtype`` is "float32", "bfloat16", "float16", or "auto" for ``native_dtype``. Shards and tensor names stay as they are. Tensors
    of integers are copied. ``out`` appears when it is complete.

    Raises ``InvalidOption`` for an unknown dtype, a GGUF file, a quantised model, weights that float16 cannot hold, and an ``out``
    that is not empty. Raises ``CheckpointError`` for a broken model, and ``CapacityError`` for a full disk.
    """
    if dtype not in (*DTYPES, "auto"):
        choices = [*DTYPES, "auto"]
        raise InvalidOption("unknown dtype", got=repr(dtype), allowed=", ".join(choices), remedy=nearest(dtype, choices))
    name = native_dtype() if dtype == "auto" else dtype
    checkpoint = _open_dense(source)
    cast = _Cast(checkpoint, name, progress or (lambda done, total: None))
    entries = [cast.result(entry) for entry in checkpoint.tensors.values()]
    with new_folder(out, sum(entry.nbytes for entry in entries)) as folder:
        if name == "float16":
            cast.check_range()
        for file in dict.fromkeys(entry.file.name for entry in entries):
            write_shard(folder / file, [entry for entry in entries if entry.file.name == file], cast.chunks)
        if any(entry.file.name != SINGLE for entry in entries):
            write_index(folder, entries)
        config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"} | {"dtype": name}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_side_files(source, folder)
    return CastReport(
        dtype=name,
        num_tensors=sum(map(_has_floats, entries)),
        bytes_before=sum(entry.nbytes for entry in checkpoint.tensors.values()),
        bytes_after=sum(entry.nbytes for entry in entries),
        relative_errors=cast.relative_errors,
        num_zeroed=cast.num_zeroed,
    )


def _open_dense(source: Path) -> Checkpoint:
    if is_gguf(source):
        remedy = "Give the folder of the original model, in safetensors"
        raise InvalidOption("a GGUF file cannot be cast to another dtype", got=str(source), remedy=remedy)
    checkpoint = Checkpoint.open(source)
    if checkpoint.matrices or quantization_settings(checkpoint.config):
        raise InvalidOption(
            f"{source} is already quantised", got=scheme_name(checkpoint.config), remedy="Give the folder of the original model"
        )
    return checkpoint


def _has_floats(entry: TensorEntry) -> bool:
    return entry.dtype in FLOAT_DTYPES


@dataclass
class _Cast:
    """The conversion of each tensor, and what was measured so far."""

    checkpoint: Checkpoint
    dtype: str
    progress: Progress
    relative_errors: dict[str, float] = field(default_factory=dict)
    num_zeroed: int = 0
    _bytes_read: int = 0

    def result(self, entry: TensorEntry) -> TensorEntry:
        """Return what a tensor becomes; its file is still that of the source."""
        if not _has_floats(entry):
            return entry
        stored = STORED[self.dtype]
        return dataclasses.replace(entry, dtype=stored, nbytes=entry.nbytes // ITEM_BYTES[entry.dtype] * ITEM_BYTES[stored])

    def check_range(self) -> None:
        """Raise ``InvalidOption`` that lists the tensors with a weight beyond the range of float16."""
        outside = []
        for entry in filter(_has_floats, self.checkpoint.tensors.values()):
            largest = 0.0
            for chunk_N in self._read(entry.name):
                with finite_weights(entry.name, self.checkpoint.folder):
                    check_finite(chunk_N)
                largest = max(largest, float(chunk_N.abs().amax()))
            if largest > FLOAT16_MAX:
                outside.append(f"{entry.name} (up to {largest:.7g})")
        if outside:
            raise InvalidOption(
                f"float16 holds numbers up to 65,504, and {self.checkpoint.folder} has larger weights ({count_faults(outside)}): "
                f"{list_faults(outside)}",
                remedy="Use bfloat16, which has the range of float32",
            )

    def chunks(self, entry: TensorEntry) -> Iterator[Tensor]:
        """Yield the values of a tensor in the dtype of the result."""
        source = self.checkpoint.tensors[entry.name]
        for chunk_N in self._read(entry.name):
            if not _has_floats(source):
                yield chunk_N
                continue
            cast_N = chunk_N.to(DTYPES[self.dtype])
            with finite_weights(entry.name, self.checkpoint.folder):
                check_finite(cast_N)
            self._measure(source.dtype, chunk_N, cast_N)
            yield cast_N

    def _read(self, name: str) -> Iterator[Tensor]:
        """Yield the stored values, and report the progress."""
        for chunk_N in torch.split(self.checkpoint.read(name).flatten(), CHUNK):
            if chunk_N.numel():
                yield chunk_N
            self._bytes_read += chunk_N.nbytes
            self.progress(self._bytes_read, self._total_bytes)

    @functools.cached_property
    def _total_bytes(self) -> int:
        """Two passes over the floating-point weights for float16, one for the others."""
        entries = list(self.checkpoint.tensors.values())
        checked = filter(_has_floats, entries) if self.dtype == "float16" else ()
        return sum(entry.nbytes for entry in (*entries, *checked))

    def _measure(self, stored: str, chunk_N: Tensor, cast_N: Tensor) -> None:
        exact_N = chunk_N.double() if stored == "F64" else chunk_N.float()
        errors_N = (cast_N.to(exact_N.dtype) - exact_N).abs_()
        errors_N.div_(exact_N.abs().clamp_(min=SMALLEST[exact_N.dtype]))  # 0 of a weight that is 0
        name = NAMES[stored]
        self.relative_errors[name] = max(self.relative_errors.get(name, 0.0), float(errors_N.amax()))
        self.num_zeroed += int(exact_N.count_nonzero() - cast_N.count_nonzero())
