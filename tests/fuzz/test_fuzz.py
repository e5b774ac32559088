"""A tenth of every fuzz test, from a fixed seed. ``make fuzz`` runs all of each from a new one."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.registry import KINDS, find
from tests.fuzz.report import Report

SEED = 28


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_input_is_refused_by_name(kind: str) -> None:
    report = Report(kind, SEED)
    find(kind)(random.Random(SEED), KINDS[kind].cases // 10, report)
    assert report.faults == []
    assert len(report.outcomes) > 1, "cases of one outcome test nothing"
