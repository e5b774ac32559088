"""Steps that take no longer for more tokens, so that guesses always pay: on a small model, and a busy machine, they might not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from hasten.entrypoints.wiring import speculative_setup
from hasten.speculative.cost_model import CostModel


class _Free(CostModel):
    def __init__(self, measured: Mapping[int, float]) -> None:
        super().__init__({1: 1.0, 64: 1.0})

    def record(self, num_tokens: int, seconds: float) -> None:
        """What they took in truth changes nothing."""


@contextmanager
def free_steps() -> Iterator[None]:
    """Around the making of an engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculative_setup, "CostModel", _Free)
        yield
