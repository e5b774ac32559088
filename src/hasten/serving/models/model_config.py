"""``ModelConfig``: a model as the server was told to serve it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hasten.core.engine_options import EngineOptions

MIN_WAITING = 32  # requests that may wait for an engine, however few run at a time


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """``options``: fields of ``EngineOptions``. Raises ``InvalidOption`` for wrong ones."""

    name: str  # as requests name it
    path: str  # a folder, a GGUF file, a hub id or "demo"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        EngineOptions.from_dict(self.options)

    def max_requests(self, limit: int | None) -> int:
        """Return how many requests may run or wait: ``limit``, or by the sequences that run at a time."""
        max_num_seqs = EngineOptions.from_dict(self.options).max_num_seqs
        return limit or max_num_seqs + max(MIN_WAITING, 4 * max_num_seqs)
