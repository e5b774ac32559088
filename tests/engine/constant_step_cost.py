"""A cost model in which drafts always pay; the measured costs of a small model on a busy machine vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from hasten.entrypoints.wiring import speculative_setup
from hasten.speculative.cost_model import CostModel


class _ConstantCostModel(CostModel):
    """Every step takes one second, whatever its number of tokens."""

    def __init__(self, measured: Mapping[int, float]) -> None:
        super().__init__({1: 1.0, 64: 1.0})

    def record(self, num_tokens: int, seconds: float) -> None:
        """Ignore the measured time."""


@contextmanager
def constant_step_cost() -> Iterator[None]:
    """Give engines that are built in this context the constant cost model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculative_setup, "CostModel", _ConstantCostModel)
        yield
