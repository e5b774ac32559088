"""The curves of a training are JSON always, and a picture where matplotlib is installed."""

from __future__ import annotations

import ast
import json
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hasten.compress.distill import curves
from hasten.compress.distill.curves import panels, write_curves

EVALUATIONS = [
    {
        "step": step,
        "train_loss": 3.0 / step,
        "loss": 2.0 / step,
        "perplexity": 9.0 / step,
        "kl": 1.0 / step,
        "top1_agreement": 0.1 * step,
        "outside": {"loss": 4.0, "perplexity": 8.0 + step, "kl": 0.5 * step, "top1_agreement": 0.5},
    }
    for step in (1, 2, 4)
]


class FakeAxes:
    """Records what is drawn."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[list[float], list[float]]] = {}
        self.settings: dict[str, Any] = {}
        self.has_legend = False

    def plot(self, x: list[float], y: list[float], *, label: str) -> None:
        self.lines[label] = (list(x), list(y))

    def set(self, **settings: Any) -> None:
        self.settings |= settings

    def legend(self) -> None:
        self.has_legend = True


class FakeFigure:
    made: ClassVar[list[FakeFigure]] = []

    def __init__(self, **settings: Any) -> None:
        self.axes: list[FakeAxes] = []
        FakeFigure.made.append(self)

    def subplots(self, rows: int, columns: int, *, squeeze: bool) -> list[list[FakeAxes]]:
        assert (rows, squeeze) == (1, False)
        self.axes = [FakeAxes() for _ in range(columns)]
        return [self.axes]

    def savefig(self, path: Any, **settings: Any) -> None:
        path.write_bytes(b"picture")


@pytest.fixture
def fake_matplotlib(monkeypatch):
    FakeFigure.made.clear()
    figure = types.ModuleType("matplotlib.figure")
    figure.Figure = FakeFigure
    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", figure)


def test_the_picture_has_the_values_of_the_json(tmp_path, fake_matplotlib):
    assert write_curves(tmp_path, EVALUATIONS) is None
    assert json.loads((tmp_path / "curves.json").read_text()) == {"evaluations": EVALUATIONS}
    assert (tmp_path / "curves.png").read_bytes() == b"picture"
    (figure,) = FakeFigure.made
    loss, kl, perplexity, agreement = figure.axes
    assert loss.lines == {"training": ([1, 2, 4], [3.0, 1.5, 0.75]), "validation": ([1, 2, 4], [2.0, 1.0, 0.5])}
    assert kl.lines == {"inside the set": ([1, 2, 4], [1.0, 0.5, 0.25]), "outside the set": ([1, 2, 4], [0.5, 1.0, 2.0])}
    assert perplexity.lines["outside the set"] == ([1, 2, 4], [9.0, 10.0, 12.0])
    assert agreement.settings["title"] == "same top token" and agreement.settings["xlabel"] == "step"
    assert [axes.settings["yscale"] for axes in figure.axes] == ["linear", "linear", "log", "linear"]
    assert all(axes.has_legend for axes in figure.axes)


def test_without_matplotlib_the_json_is_written_and_the_remedy_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    missing = write_curves(tmp_path, EVALUATIONS)
    assert missing is not None and 'pip install "hasten[plot]"' in missing
    assert [file.name for file in tmp_path.iterdir()] == ["curves.json"]


def test_only_what_was_measured_is_drawn():
    """Without a teacher there is no KL divergence, and without text outside the set one line."""
    plain = [{"step": 1, "train_loss": 1.0, "loss": 2.0, "positions": 3, "perplexity": 4.0}]
    assert [(panel.title, list(panel.lines)) for panel in panels(plain)] == [
        ("loss", ["training", "validation"]),
        ("perplexity", ["inside the set"]),
    ]


def test_matplotlib_is_imported_where_a_picture_is_drawn_and_nowhere_else():
    source = Path(curves.__file__).parents[3]
    importing = [
        file for file in source.rglob("*.py") if "import matplotlib" in file.read_text() or "from matplotlib" in file.read_text()
    ]
    assert importing == [Path(curves.__file__)]
    assert not any(
        "matplotlib" in ast.unparse(node)
        for node in ast.parse(importing[0].read_text()).body
        if not isinstance(node, ast.FunctionDef | ast.Expr)
    )
