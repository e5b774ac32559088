"""The benchmark of early exit: recalibration on one half of the texts, and the oracle bound."""

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


def test_recalibrated_thresholds_are_tested_on_unseen_texts(exits: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([0.0, 0.004, 0.02, 0.05], dtype=torch.float64)
    risk = means[:, None] + 0.01 * torch.randn(4, 200, generator=generator, dtype=torch.float64)
    layers = torch.tensor([8.0, 7.0, 6.0, 5.0]).double()[:, None].expand(4, 200)
    result = exits.recalibrated(Costs(risk, layers, risk), torch.zeros(4), 0.01, 50)
    assert result["share_broken_on_all_texts"] == 0.0 and result["share_broken_on_other_half"] <= 0.1
    assert result["thresholds"] == [1] and result["mean_layers"] == 7.0 and result["texts_per_half"] == 100
    assert result["mean_loss"] == pytest.approx(0.004, abs=2e-3)


def test_a_selection_without_a_statistical_test_is_detected(exits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the threshold with an allowed mean breaks the guarantee about every other time."""
    generator = torch.Generator().manual_seed(1)
    allowed = allowed_loss(0.01)
    means = torch.tensor([0.0, *(allowed * (0.9 + 0.02 * step) for step in range(11))], dtype=torch.float64)
    risk = means[:, None] + 0.02 * torch.randn(12, 200, generator=generator, dtype=torch.float64)
    costs = Costs(risk, risk, risk)
    assert exits.recalibrated(costs, torch.zeros(12), 0.01, 100)["share_broken_on_all_texts"] <= 0.05

    def select_by_mean(risk_LN: torch.Tensor, largest_L: torch.Tensor, tolerance: float) -> int:
        return int((risk_LN.mean(1) <= allowed).nonzero()[-1])

    monkeypatch.setattr(exits, "select_threshold", select_by_mean)
    result = exits.recalibrated(costs, torch.zeros(12), 0.01, 100)
    assert result["share_broken_on_all_texts"] > 0.2 and result["share_broken_on_other_half"] > 0.2


def test_the_oracle_is_close_to_the_best_of_all_choices(exits: ModuleType) -> None:
    generator = torch.Generator().manual_seed(2)
    kl_NDT = torch.rand(2, 2, 4, generator=generator).square() * 0.05
    kl_NDT[:, 1] = torch.minimum(kl_NDT[:, 0], kl_NDT[:, 1])
    zeros = torch.zeros(2, 4)
    statistics = ExitStatistics(zeros, kl_NDT, kl_NDT, kl_NDT > 1, {})
    found = exits.oracle(statistics, (2, 5), 8, 0.01)
    kl_of_choices = torch.stack((kl_NDT[:, 0].flatten(), kl_NDT[:, 1].flatten(), torch.zeros(8)), dim=1).tolist()
    best = min(
        sum((2, 5, 8)[choice] for choice in choices) / 8
        for choices in itertools.product(range(3), repeat=8)
        if sum(row[choice] for row, choice in zip(kl_of_choices, choices, strict=True)) / 8 <= allowed_loss(0.01)
    )
    # Lagrange multipliers find the corners of the curve, which are at most one token away from the best.
    assert best <= found <= best + 6 / 8


def test_the_plot_is_valid_svg_with_all_points() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        draw_curves = importlib.import_module("exits_plot").draw_curves
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
    root = ET.fromstring(draw_curves(result))
    namespace = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{namespace}polyline")) == 4 and len(root.findall(f"{namespace}circle")) == 2
    assert any("a & b" in (text.text or "") for text in root.findall(f"{namespace}text"))
