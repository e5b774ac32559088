"""``EngineStats`` computes the speed-up over plain decoding."""

from __future__ import annotations

import pytest

from hasten.core.plan import RowPlan, StepPlan
from hasten.core.result import Continuation, StepResult
from hasten.engine.stats import EngineStats


def test_speed_up_is_the_estimated_time_of_plain_steps_over_the_measured_time() -> None:
    """Two sequences gain five tokens in 30 ms; plain steps of two, 20 ms each, would take 50 ms."""
    stats = EngineStats(plain_step=lambda num_tokens: 0.01 * num_tokens)
    assert stats.speed_up is None
    decoding = StepPlan((RowPlan(0, 9, (1, 2, 3, 4), ((0,),), 4), RowPlan(1, 5, (7,), ((1,),), 1)))
    result = StepResult((Continuation(0, (2, 3, 4, 5)), Continuation(1, (6,))))
    stats.count_time(decoding, result, 0.03)
    stats.count_time(StepPlan((RowPlan(2, 0, (1, 2, 3), ((2,),), 1),)), StepResult((Continuation(2, (4,)),)), 9.0)
    assert stats.speed_up == pytest.approx(0.05 / 0.03)
