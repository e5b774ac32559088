"""60 outputs that are bad in known ways and 60 good ones, half of each made by hand and half by the demo model."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.quality.diagnosis.labelled_outputs import OUTPUTS, findings

from hasten.quality.diagnosis import diagnose as module
from hasten.quality.diagnosis.diagnose import DETECTORS
from hasten.quality.diagnosis.observed import NOTHING

HALVES = ("development", "sealed")


def rates(half: str) -> tuple[float, float]:
    """Return the share of bad outputs whose first finding is their fault, and of good ones with any finding."""
    rows = [row for row in OUTPUTS if row["half"] == half]
    bad = [[finding.fault for finding in findings(row)][:1] == [row["fault"]] for row in rows if row["fault"] is not None]
    good = [bool(findings(row)) for row in rows if row["fault"] is None]
    return sum(bad) / len(bad), sum(good) / len(good)


def test_both_halves_have_as_many_of_each() -> None:
    counts = Counter((row["half"], row["source"], row["fault"] is None) for row in OUTPUTS)
    assert counts == {(half, source, is_good): 15 for half in HALVES for source in ("model", "hand") for is_good in (True, False)}
    assert {row["fault"] for row in OUTPUTS} == {None, "prompt_order", *DETECTORS}


@pytest.mark.parametrize("half", HALVES)
def test_faults_are_named_and_good_outputs_are_not(half: str) -> None:
    named, false_alarms = rates(half)
    print(f"{half}: {named:.1%} named, {false_alarms:.1%} false alarms")
    assert named >= 0.9
    assert false_alarms <= 0.05


def test_no_other_fault_is_named_beside_the_right_one() -> None:
    surplus = [
        (row["id"], finding.fault)
        for row in OUTPUTS
        if row["fault"]
        for finding in findings(row)
        if finding.fault not in (row["fault"], *row["also"])
    ]
    assert surplus == []


@pytest.mark.parametrize("fault", DETECTORS)
def test_without_a_detector_its_outputs_are_missed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(module, "DETECTORS", {**DETECTORS, fault: lambda output: NOTHING})
    rows = [row for row in OUTPUTS if row["fault"] == fault]
    assert all(fault not in {finding.fault for finding in findings(row)} for row in rows)
