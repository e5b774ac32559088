"""The pool and the figures of the benchmark of selection."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

CODE = '''
class A:
    def method(self, x):
        """Say what."""
        return x

def one_line(): return 1

async def run(
    y,
):
    # a comment
    await y
'''


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("selection")


def test_a_function_is_cut_before_its_first_statement(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(CODE)
    assert sorted(script.functions(file)) == [
        ("    def method(self, x):\n", '        """Say what."""\n        return x\n'),
        ("async def run(\n    y,\n):\n    # a comment\n", "    await y\n"),
    ]
    file.write_text("def broken(")
    assert list(script.functions(file)) == []


def test_differences_are_paired_by_seed(script: ModuleType) -> None:
    rows = [
        {"ifd": {"kl": value, "nll": 0.0}, "random": {"kl": value - gain, "nll": 0.0}} for value, gain in ((5, 1), (1, 2), (3, 3))
    ]
    found = script.differences(rows, "ifd")["kl"]
    assert found["difference"] == pytest.approx(2)
    assert found["interval"] == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert script.differences(rows[:1], "ifd")["kl"]["interval"] is None
