"""``OptimizationReport``: its file holds it, and a damaged file is one error."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.exhaustive import repeats

from hasten.core.errors import InvalidOption
from hasten.prompts.optimization_report import OptimizationReport, OptimizationSummary, PromptFigures, read_report, report_json

FIGURES = PromptFigures(
    validation=0.5, validation_interval=(0.1, 0.9), held_out=-3.25, held_out_interval=None, prompt_tokens=7.5, prompt_seconds=0.01
)
SUMMARY = OptimizationSummary(
    method="pez",
    metric="f1",
    model="demo",
    is_changed=True,
    is_soft=False,
    num_train=4,
    num_validation=2,
    num_held_out=2,
    difference=0.25,
    difference_interval=(-0.5, 0.75),
    is_real=False,
    optimization_tokens=2**40,
    report_tokens=12,
    num_earlier_reads=1,
)
REPORT = OptimizationReport(SUMMARY, FIGURES, FIGURES)


def test_the_file_holds_the_report(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(report_json(REPORT))
    assert read_report(file) == REPORT


JUNK: list[Any] = [None, True, "x", -1, 1.5, [], {}, [1], 10**400, "\ud800", [[1]], {"a": 1}, [0.5, 0.5, 0.5], -(2.0**60), "9"]


def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    file, generator, refused = tmp_path / "report.json", random.Random(0), list[str]()
    for _ in range(repeats("optimisation reports")):
        values = json.loads(report_json(REPORT))
        part = values if generator.random() < 0.7 else values["best"]
        key = generator.choice([*part])
        if generator.random() < 0.2:
            del part[key]
        else:
            part[key] = generator.choice(JUNK)
        data = json.dumps(values).encode()
        file.write_bytes(data if generator.random() < 0.8 else data[: generator.randrange(len(data))])
        try:
            found = read_report(file)
        except InvalidOption as error:
            refused.append(str(error))
        else:
            assert json.loads(report_json(found)).keys() == values.keys()
    assert len(refused) > repeats("optimisation reports") // 2
    assert all(str(file) in message and "\n" not in message for message in refused)
