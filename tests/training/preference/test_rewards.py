"""Rewards are numbers, and a function that raises or hangs, or a name that means nothing, costs one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.core.errors import HastenError, InvalidOption
from hasten.quality.function_process import FunctionProcess
from hasten.training.preference.rewards import FunctionReward, compiles, find_reward


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", True),
        ("x = 1\n", True),
        ("def f():\n    return", True),
        ("def f():\n", False),
        ("x = (1\n", False),
        ("if x is 1: '\\d'", True),  # two SyntaxWarnings
        ("x = '\0'", False),
        ("(" * 5000 + ")" * 5000, False),
        ("-" * 100_000 + "1", False),
        ("\ud800", False),
        ("a" * (2 << 20), False),
    ],
    ids=["empty", "assignment", "function", "header", "open", "warnings", "null", "nested", "signs", "surrogate", "long"],
)
def test_compiles(source: str, expected: bool) -> None:
    assert compiles(source) is expected


def test_input_and_output_are_one_source() -> None:
    reward = find_reward("compiles")
    assert reward.scores([("def f(x):\n    return", " x"), ("def f(x):\n    return", " (x"), ("x = ", "")]) == [1.0, 0.0, 0.0]


def function(folder: Path, body: str, name: str = "reward") -> Path:
    file = folder / "mine.py"
    file.write_text(f"import time\ndef {name}(input, output):\n    {body}\n")
    return file


def test_a_function_of_a_file(tmp_path: Path) -> None:
    file = function(tmp_path, "return len(output) - len(input)", "gain")
    reward = find_reward(f"{file}:gain")
    assert reward.scores([("a", "abc"), ("abc", "")]) == [2.0, -3.0]
    reward.close()
    other = function(tmp_path, "return 0", "gain")
    assert find_reward(f"{other}:gain").identity != reward.identity


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "the reward .*mine.py:reward failed, because it fails: got ZeroDivisionError"),
        ("return float('nan')", "it returned nan"),
        ("return output", "could not convert"),
        ("time.sleep(1e6)", r"it takes too long: allowed: up to 0\.2 s"),
        ("return len(bytearray(1 << 31))", "MemoryError"),
    ],
    ids=["raises", "nan", "text", "hangs", "memory"],
)
def test_a_faulty_function_is_one_error(tmp_path: Path, body: str, message: str) -> None:
    file = function(tmp_path, body)
    reward = FunctionReward(
        file, "reward", FunctionProcess(file, "reward", seconds=0.2 if "sleep" in body else 20, max_bytes=1 << 30)
    )
    with pytest.raises(HastenError, match=message):
        reward.scores([("a", "b")])
    assert reward._process._process is None


@pytest.mark.parametrize("name", ["compile", "nothing.py:1x", "no/folder", ""])
def test_a_name_that_means_nothing_is_one_error(name: str) -> None:
    with pytest.raises(InvalidOption, match="there is no such reward"):
        find_reward(name)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"missing\.py"):
        find_reward(str(tmp_path / "missing.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    reward = find_reward(str(tmp_path / "empty.py"))
    with pytest.raises(InvalidOption, match="it has no function reward"):
        reward.scores([("a", "b")])
