"""``WeightSummary``: how a checkpoint stores the weights of a decoder, and how the decoder keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hasten.checkpoints.reader import Checkpoint
from hasten.layers.formats.base import WeightFormat
from hasten.layers.formats.fused import Fused
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.models.decoder import Decoder
from hasten.models.weights import WeightMap, expected_tensors, find_format, leaf_formats

_WIDE = frozenset({"float32", "bfloat16", "float16"})  # forms that read more memory than the codes of a scheme


@dataclass(slots=True)
class SchemeUse:
    """The matrices of one scheme that are kept in one form."""

    spec: QuantSpec
    form: str  # as ``WeightFormat.form``
    activations: str  # as ``WeightFormat.activations``
    is_exact: bool  # False: the form rounds the weights
    num_matrices: int = 0
    num_weights: int = 0
    file_bytes: int = 0
    error: float | None = None  # relative, of the worst matrix; None if it is exact or not loaded yet

    def as_dict(self) -> dict[str, Any]:
        return {
            "scheme": self.spec.describe(),
            "matrices": self.num_matrices,
            "bits_per_weight": round(8 * self.file_bytes / self.num_weights, 3),
            "kept_as": self.form,
            "exact": self.is_exact,
            "relative_error": self.error,
            "activations": self.activations,
        }


@dataclass(frozen=True, slots=True)
class WeightSummary:
    num_weights: int
    file_bytes: int
    schemes: tuple[SchemeUse, ...]  # empty for a checkpoint that is not quantised; most weights first
    activations: str  # of the quantised matrices: "float", "int16", "int8", or several of them

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight in the file."""
        return 8 * self.file_bytes / self.num_weights

    def as_dict(self) -> dict[str, Any]:
        return {
            "schemes": [use.as_dict() for use in self.schemes],
            "bits_per_weight": round(self.bits_per_weight, 3),
            "activations": self.activations,
        }

    def clause(self) -> str:
        """Return the quantised weights in one clause; empty if none are. It says which are no longer codes.

        ``GPTQ int4, 4.6 bits per weight, int16 activations, kept as bfloat16 (relative error 0.0017)``
        """
        if not self.schemes:
            return ""
        names = " and ".join(dict.fromkeys(use.spec.name for use in self.schemes))
        parts = [names, f"{self.bits_per_weight:.1f} bits per weight", f"{self.activations} activations"]
        errors: dict[str, float] = {}
        for use in self.schemes:
            if use.form in _WIDE:
                errors[use.form] = max(errors.get(use.form, 0.0), use.error or 0.0)
        return ", ".join(parts + [f"kept as {form}" + (f" (relative error {e:.2g})" if e else "") for form, e in errors.items()])


def summarize_weights(decoder: Decoder, sources: WeightMap, checkpoint: Checkpoint) -> WeightSummary:
    """Return the summary of a decoder that is loaded, or only planned: errors are not known then."""
    shapes = expected_tensors(sources, decoder, checkpoint.matrices)
    num_weights = sum(math.prod(shape) for shape, _ in shapes.values())
    file_bytes = sum(checkpoint.nbytes(name) for name in shapes)
    schemes = _schemes(decoder, sources, checkpoint)
    kinds = {use.activations for use in schemes} or {part.activations for part in leaf_formats(decoder)}
    if not schemes and "int8" in kinds:
        kinds = {"int8"}  # the tables beside quantised matrices
    return WeightSummary(num_weights, file_bytes, schemes, " and ".join(sorted(kinds)))


def _schemes(decoder: Decoder, sources: WeightMap, checkpoint: Checkpoint) -> tuple[SchemeUse, ...]:
    found: dict[tuple[QuantSpec, str, str, bool], SchemeUse] = {}
    for source in sources:
        weight_format, matrix = find_format(decoder, source.target), checkpoint.matrices.get(source.name)
        if weight_format is None or matrix is None:
            continue
        part = _part(weight_format, source.start)
        key = matrix.spec, part.form, part.activations, part.conversion is None
        use = found.setdefault(key, SchemeUse(*key))
        use.num_matrices += 1
        use.num_weights += math.prod(matrix.shape)
        use.file_bytes += matrix.nbytes
        if part.conversion is not None and (error := part.conversion.relative_error) is not None:
            use.error = max(use.error or 0.0, error)
    return tuple(sorted(found.values(), key=lambda use: -use.num_weights))


def _part(weight_format: WeightFormat, row: int) -> WeightFormat:
    """Return the format that holds an output row."""
    if not isinstance(weight_format, Fused):
        return weight_format
    return next(part for rows, part in weight_format.parts if row in range(rows.start, rows.stop))
