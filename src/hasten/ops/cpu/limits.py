"""Which shapes the native kernels take, in words for the user.

The numbers are those of the library (``Limits``).
"""

from __future__ import annotations

from hasten.core.errors import InvalidOption, UnsupportedModel
from hasten.ops.cpu.library import Limits


def matrix_fault(limits: Limits, out_features: int, in_features: int, *, int8_activations: bool) -> str | None:
    """Return what the kernels do not take of a weight matrix; None if they take it."""
    if int8_activations and in_features > limits.int8_inputs:
        return f"{in_features:,} inputs (with int8 activations at most {limits.int8_inputs:,})"
    if (most := max(out_features, in_features)) > limits.features:
        return f"{most:,} features (at most {limits.features:,})"
    return None


def heads_fault(limits: Limits, head_dim: int) -> str | None:
    """Return what the kernels do not take of the heads of attention; None if they take them."""
    return f"heads of {head_dim:,} dimensions (at most {limits.head_dim:,})" if head_dim > limits.head_dim else None


def check_matrix(limits: Limits, out_features: int, in_features: int, *, int8_activations: bool) -> None:
    """Raise ``UnsupportedModel`` for a weight matrix that the kernels do not take."""
    if (fault := matrix_fault(limits, out_features, in_features, int8_activations=int8_activations)) is not None:
        raise UnsupportedModel(
            "the native CPU kernels do not take a weight matrix of this shape",
            got=f"a matrix of {out_features:,} outputs with {fault}",
            remedy="Use backend='torch'" + (", or weight-only quantization" if int8_activations else ""),
        )


def check_heads(limits: Limits, head_dim: int) -> None:
    """Raise ``UnsupportedModel`` for heads that the kernels do not take."""
    if (fault := heads_fault(limits, head_dim)) is not None:
        raise UnsupportedModel("the native CPU kernels do not take these heads", got=fault, remedy="Use backend='torch'")


def check_option(name: str, value: int, most: int) -> None:
    """Raise ``InvalidOption`` unless the option is from 1 to ``most``."""
    if not 1 <= value <= most:
        raise InvalidOption(f"{name} is out of range", got=value, allowed=f"a whole number from 1 to {most:,}")
