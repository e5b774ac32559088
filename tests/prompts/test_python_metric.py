"""A faulty scoring function of the user's file names the item, and several references count by the best."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.prompts.conftest import TextVariant

from hasten import LLM
from hasten.core.errors import HastenError
from hasten.prompts.evaluate import evaluate
from hasten.prompts.metrics.python import PythonMetric
from hasten.prompts.task import PromptTask


def test_the_item_is_named(llm: LLM, task: PromptTask, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(input, output, reference):\n    return 1 / (reference != 'sys')\n")
    metric = PythonMetric(file, "score")
    with pytest.raises(HastenError, match=r"line 3 of the task, variant v: the function of the metric python.*ZeroDivisionError"):
        evaluate(llm, TextVariant("v", "import {input}"), task.items, metric)
    assert metric._process._process is None


def test_several_references_count_by_the_best(tmp_path: Path) -> None:
    from tests.prompts.test_metrics import score

    file = tmp_path / "mine.py"
    file.write_text("def score(input, output, reference):\n    return len(reference)\n")
    metric = PythonMetric(file, "score")
    assert score(metric, "o", "a", "abc", "ab") == 3
    metric.close()
