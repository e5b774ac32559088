"""Suites that repeat one check by the hundred: a fixed part of them runs in CI, all of them under ``make exhaustive``.

``python -m tests.exhaustive`` prints what either covers; ``--files`` prints the files of the suites.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class Suite(NamedTuple):
    ci: int  # repeats in CI, the first ones of the full run
    full: int
    unit: str
    file: str


SUITES = {
    "scheduler": Suite(96, 300, "seeds of 500 random steps with random features", "tests/scheduling/test_oracle.py"),
    "acceptance": Suite(
        12_500, 50_000, "outputs of four sampled tokens per rule", "tests/speculative/acceptance/test_chi_square.py"
    ),
    "drafters": Suite(160, 500, "prompts per drafter, in eight kinds of settings", "tests/engine/test_speculation.py"),
    "bad words": Suite(120, 5_000, "texts of 16 tokens per kind of tokenizer", "tests/sampling/test_bad_words.py"),
    "batches": Suite(108, 306, "random batches over nine formats and ways to run", "tests/engine/test_independence.py"),
}
EXHAUSTIVE = os.environ.get("HASTEN_EXHAUSTIVE") == "1"


def repeats(name: str) -> int:
    """Return how often a suite repeats its check in this run."""
    return SUITES[name].full if EXHAUSTIVE else SUITES[name].ci


def main() -> None:
    if "--files" in sys.argv:
        print(*(suite.file for suite in SUITES.values()))
        return
    print(f"{'suite':12}{'in CI':>8}{'exhaustive':>12}  what is repeated")
    for name, suite in SUITES.items():
        print(f"{name:12}{suite.ci:>8,}{suite.full:>12,}  {suite.unit} ({suite.file})")


if __name__ == "__main__":
    main()
