"""The benchmark of early exit judges as it says: halves against halves, and a bound that nothing can beat."""

from __future__ import annotations

import importlib
import itertools
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hasten.training.early_exit.exit_statistics import ExitStatistics
from hasten.training.early_exit.thresholds import Costs, allowed_loss

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def exits() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("exits")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_recalibrated_thresholds_are_tried_on_what_they_have_not_seen(exits: ModuleType) -> None:
    draw = torch.Generator().manual_seed(0)
    means = torch.tensor([0.0, 0.004, 0.02, 0.05], dtype=torch.float64)
    risk = means[:, None] + 0.01 * torch.randn(4, 200, generator=draw, dtype=torch.float64)
    layers = torch.tensor([8.0, 7.0, 6.0, 5.0]).double()[:, None].expand(4, 200)
    careful = exits.recalibrated(Costs(risk, layers, risk), torch.zeros(4), 0.01, 50)
    assert careful["share_broken_on_all_texts"] == 0.0 and careful["share_broken_on_other_half"] <= 0.1
    assert careful["thresholds"] == [1] and careful["mean_layers"] == 7.0 and careful["texts_per_half"] == 100
    assert careful["mean_loss"] == pytest.approx(0.004, abs=2e-3)


def test_a_chooser_without_a_test_would_be_seen(exits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: taking what looks allowed on the half breaks the promise about every other time."""
    draw = torch.Generator().manual_seed(1)
    allowed = allowed_loss(0.01)
    means = torch.tensor([0.0, *(allowed * (0.9 + 0.02 * step) for step in range(11))], dtype=torch.float64)
    risk = means[:, None] + 0.02 * torch.randn(12, 200, generator=draw, dtype=torch.float64)
    costs = Costs(risk, risk, risk)
    assert exits.recalibrated(costs, torch.zeros(12), 0.01, 100)["share_broken_on_all_texts"] <= 0.05

    def looks(risk_LN: torch.Tensor, largest_L: torch.Tensor, tolerance: float) -> int:
        return int((risk_LN.mean(1) <= allowed).nonzero()[-1])

    monkeypatch.setattr(exits, "select_threshold", looks)
    found = exits.recalibrated(costs, torch.zeros(12), 0.01, 100)
    assert found["share_broken_on_all_texts"] > 0.2 and found["share_broken_on_other_half"] > 0.2


def test_the_oracle_is_the_best_of_all_choices(exits: ModuleType) -> None:
    draw = torch.Generator().manual_seed(2)
    kl_NDT = torch.rand(2, 2, 4, generator=draw).square() * 0.05
    kl_NDT[:, 1] = torch.minimum(kl_NDT[:, 0], kl_NDT[:, 1])
    nothing = torch.zeros(2, 4)
    found = ExitStatistics(nothing, kl_NDT, kl_NDT, kl_NDT > 1, {})
    ours = exits.oracle(found, (2, 5), 8, 0.01)
    choices = torch.stack((kl_NDT[:, 0].flatten(), kl_NDT[:, 1].flatten(), torch.zeros(8)), dim=1).tolist()
    best = min(
        sum((2, 5, 8)[place] for place in places) / 8
        for places in itertools.product(range(3), repeat=8)
        if sum(row[place] for row, place in zip(choices, places, strict=True)) / 8 <= allowed_loss(0.01)
    )
    # Prices find the corners of the curve: at most one token away from the best.
    assert best <= ours <= best + 6 / 8


def test_the_picture_is_a_picture() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        curve = importlib.import_module("exits_picture").curve
    finally:
        sys.path.remove(str(BENCHMARKS))
    points = [
        {"threshold": 1.0, "mean_layers": 7.5, "loss": 0.01, "kl": 0.02},
        {"threshold": 0.9, "mean_layers": 7, "loss": 0.5, "kl": 0.6},
    ]
    result = {
        "num_layers": 8,
        "perplexity": 12.0,
        "texts": 3,
        "options": {"model": "a & b"},
        "rules": {"softmax": {"points": points}, "entropy": {"points": []}},
    }
    root = ET.fromstring(curve(result))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}polyline")) == 4 and len(root.findall(f"{name}circle")) == 2
    assert any("a & b" in (text.text or "") for text in root.findall(f"{name}text"))
