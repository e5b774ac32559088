"""``CacheOptions``: what of a teacher is cached, and for which sequences.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Threads
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Length, Range

LayerIndex = Annotated[int, Range(0, 2**16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """Raises ``InvalidOption`` that lists every value out of range."""

    top_k: Annotated[int, Range(1, 2**20)] = 64  # tokens whose probabilities are stored; the rest is one number
    hidden_layers: Annotated[tuple[LayerIndex, ...], Length(0, 1024)] = ()  # from 0; their outputs are stored
    seq_len: Annotated[int, Range(32, 2**20)] = 512  # tokens of a window, or of the longest example
    validation_fraction: Annotated[float, Range(0, 0.5, above=True)] = 0.05  # part that is kept for validation
    batch: Annotated[int, Range(1, 2**16)] = 8  # sequences that the teacher reads at a time; the result depends on no batch
    threads: Threads | None = None  # None: one per core that this process may use

    def __post_init__(self) -> None:
        check_fields(self, "option of a teacher cache", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if len(set(self.hidden_layers)) < len(self.hidden_layers):
            yield Fault("hidden_layers", "different layers", "Name each layer once")
