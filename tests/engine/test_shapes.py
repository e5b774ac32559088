"""Shapes of models at and beyond the kernels' limits, in every weight format; ``tests/fuzz`` draws random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fuzz import shapes
from tests.fuzz.report import Report
from tests.fuzz.shapes import FORMATS, Shape, compare

FIXED = [
    Shape("gpt2", 1, 1, 33, 33, 132),
    Shape("gpt2", 1, 1, 1, 1, 1),
    Shape("gpt2", 3, 3, 15, 45, 17),
    Shape("gpt2", 1, 1, 511, 511, 5),
    Shape("llama", 1, 1, 2, 2, 131_072),
    Shape("llama", 1, 1, 512, 7, 19),
    Shape("llama", 2, 1, 514, 16, 19),
    Shape("llama", 1, 1, 2, 2, 2**19),
]


@pytest.mark.parametrize("shape", FIXED, ids=str)
def test_native_logits_are_those_of_transformers(shape: Shape, tmp_path: Path) -> None:
    report = Report("shapes", 0)
    assert compare(shape, FORMATS, tmp_path, report) == []
    assert report.outcomes["compared"] + report.outcomes["refused"] >= len(FORMATS)


def test_a_lost_dimension_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: logits that lack the part of one dimension."""
    logits = shapes.logits

    def faulty(folder: Path, options: dict[str, str]) -> torch.Tensor:
        return logits(folder, options) * torch.linspace(1, 1.01, 40)

    monkeypatch.setattr(shapes, "logits", faulty)
    assert "the logits are off" in str(compare(FIXED[0], FORMATS[:1], tmp_path, Report("shapes", 0)))
