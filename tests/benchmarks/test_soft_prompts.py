"""The benchmark of soft prompts: what its control, its constant answer and its choice are."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hasten.prompts.task import PromptItem, read_prompt_task
from hasten.quality.intervals import wilson_interval

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("soft_prompts")


def test_a_choice_is_free_of_the_bias_of_the_model(script: ModuleType) -> None:
    """The model always finds "x" likelier, and by less where "y" is right."""

    def score(text: str, outputs: Sequence[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(total={"x": -1.0, "y": -4.0 + text.count("y")}[output]) for output in outputs]

    items = tuple(PromptItem(line, {"input": text}, ("x",)) for line, text in enumerate(("a", "y", "yy"), 1))
    assert script.choices(SimpleNamespace(score=score), items, items[::2], ["x", "y"]) == ["x", "y"]


def test_the_control_and_the_constant_answer(script: ModuleType) -> None:
    items = read_prompt_task(Path("label_words")).items
    control = script.shuffled(items, 1)
    assert [item.variables for item in control] == [item.variables for item in items]
    counts = Counter(item.references for item in items)
    assert Counter(item.references for item in control) == counts
    same = sum(one.references == other.references for one, other in zip(items, control, strict=True))
    assert same < 0.25 * len(items)  # by chance, one in six
    found = script.answers("constant", items, ["import"] * len(items))
    assert found.mean == counts[("import",)] / len(items)
    assert found.interval == wilson_interval(counts[("import",)], len(items))
