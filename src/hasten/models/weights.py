"""``WeightMap``: which checkpoint tensor fills which rows of which parameter, and loading the tensors.

The map is read forwards to load a checkpoint and backwards to save one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from hasten.checkpoints.finite_weights import finite_weights
from hasten.checkpoints.reader import FLOAT_DTYPES, QUANTIZED, Checkpoint, ExpectedTensor
from hasten.core.errors import CapacityError
from hasten.layers.formats.base import WeightFormat, check_finite
from hasten.layers.formats.dense import Dense
from hasten.layers.formats.packed import Packed
from hasten.layers.formats.stored_matrix import StoredMatrix
from hasten.ops.cpu.memory import available_bytes, format_bytes

Progress = Callable[[int, int], None]  # (bytes read, total bytes)


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Checkpoint tensor ``name`` fills rows ``[start, stop)`` of parameter ``target``."""

    name: str
    target: str  # as in ``Decoder.named_parameters()``
    start: int = 0
    stop: int | None = None  # None: all rows from ``start``
    transposed: bool = False  # stored as [in, out]

    def rows(self, module: nn.Module) -> Tensor:
        """Return the rows of the parameter of ``module`` that this tensor fills, as a view."""
        return module.get_parameter(self.target)[self.start : self.stop]


WeightMap = tuple[WeightSource, ...]


def fused(names: Sequence[str], sizes: Sequence[int], target: str) -> WeightMap:
    """Map several tensors to consecutive rows of one parameter."""
    sources, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        sources.append(WeightSource(name, target, start, start + size))
        start += size
    return tuple(sources)


def find_format(module: nn.Module, target: str) -> WeightFormat | None:
    """Return the format of ``module`` that the parameter ``target`` belongs to; None if it is a vector."""
    path, _, _ = target.rpartition(".")
    return cast("WeightFormat", module.get_submodule(path)) if path.endswith(".format") else None


def expected_tensors(
    sources: WeightMap, module: nn.Module, matrices: Mapping[str, StoredMatrix] | None = None
) -> dict[str, ExpectedTensor]:
    """Return the shape and the readable dtypes of every tensor that fills ``module``.

    ``matrices``: those that the checkpoint quantises, always [out, in]; None: no matrix may be quantised.
    """
    expected: dict[str, ExpectedTensor] = {}
    for source in sources:
        weight_format = find_format(module, source.target)
        if weight_format is None:
            shape = tuple(source.rows(module).shape)
        else:
            shape = len(range(weight_format.out_features)[source.start : source.stop]), weight_format.in_features
        if weight_format is not None and matrices is not None and source.name in matrices:
            expected[source.name] = shape, (QUANTIZED,)
        else:
            expected[source.name] = tuple(reversed(shape)) if source.transposed else shape, FLOAT_DTYPES
    return expected


def leaf_formats(module: nn.Module) -> list[Dense | Packed]:
    """Return every matrix of ``module`` once; the parts of a fused one are matrices."""
    return [part for part in module.modules() if isinstance(part, (Dense, Packed))]


def weight_bytes(module: nn.Module) -> int:
    """Return the memory that the weights of ``module`` take, without padding.

    The module may be on the meta device.
    """
    matrices = leaf_formats(module)
    of_matrices = {id(matrix.weight) for matrix in matrices if isinstance(matrix, Dense)}
    vectors = sum(parameter.nbytes for parameter in module.parameters() if id(parameter) not in of_matrices)
    return vectors + int(sum(matrix.in_features * matrix.out_features * matrix.bits for matrix in matrices)) // 8


def check_memory(needed: int, what: str, other_bytes: int = 0, *, is_quantized: bool = False) -> None:
    """Raise ``CapacityError`` if ``needed`` bytes of weights, and ``other_bytes`` of drafters, do not fit.

    ``is_quantized``: the checkpoint already is, so that quantisation is no remedy.
    """
    free = available_bytes()
    if needed + other_bytes > free:
        others = f" and {format_bytes(other_bytes)} for what drafts" if other_bytes else ""
        raise CapacityError(
            f"the weights of {what} do not fit in memory",
            got=f"{format_bytes(needed)}{others}",
            allowed=f"up to the {format_bytes(free)} that are free",
            remedy=_memory_remedy(is_quantized),
        )


@contextmanager
def allocation_errors(what: str, *, is_quantized: bool = False) -> Iterator[None]:
    """Raise ``CapacityError`` where the system refuses memory for the weights of ``what``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "alloc" not in str(error):  # PyTorch has no error class for this
            raise
        raise CapacityError(
            f"the system refuses the memory for the weights of {what}",
            got=str(error).splitlines()[0],
            remedy=_memory_remedy(is_quantized),
        ) from error


def _memory_remedy(is_quantized: bool) -> str:
    return "Free memory, or use a smaller model" + ("" if is_quantized else ", or load it with quantization='int8' or 'int4'")


def load_weights(module: nn.Module, checkpoint: Checkpoint, sources: WeightMap, progress: Progress | None) -> None:
    """Read every tensor and every quantised matrix of ``sources`` into its parameter of ``module``.

    Raises ``CheckpointError`` for a tensor that holds NaN or infinity.
    """
    total = sum(checkpoint.nbytes(source.name) for source in sources)
    done = 0
    for source in sources:
        matrix = checkpoint.matrices.get(source.name)
        stored = checkpoint.read(source.name) if matrix is None else matrix
        with finite_weights(source.name, checkpoint.folder):
            if (weight_format := find_format(module, source.target)) is not None:
                part = source.target.rpartition(".")[2]
                weight_format.load(part, stored, slice(source.start, source.stop), transposed=source.transposed)
            else:
                assert isinstance(stored, Tensor), source.name
                check_finite(source.rows(module).copy_(stored))
        done += checkpoint.nbytes(source.name)
        if progress is not None:
            progress(done, total)
