"""``finite_weights``: names the tensor whose weights are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hasten.core.errors import CheckpointError
from hasten.layers.formats.base import NotFiniteWeights


@contextmanager
def finite_weights(name: str, folder: Path) -> Iterator[None]:
    """Turn ``NotFiniteWeights`` of the tensor ``name`` into a ``CheckpointError``."""
    try:
        yield
    except NotFiniteWeights as error:
        raise CheckpointError(
            f"the tensor {name} of {folder} holds NaN or infinity, or a number that the dtype cannot hold",
            remedy="Download or train the weights again; if their numbers are large, use dtype='bfloat16' or 'float32'",
        ) from error
