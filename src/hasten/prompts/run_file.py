"""``RunFile``: the results of a run, item by item, so that a killed run goes on where it was.

The first line names the format; every other line is one result with the key of what it depends on::

    {"hasten_prompt_run": 1}
    {"key": "9f2c...", "score": 1.0, "prompt_tokens": 12, "output_tokens": 4, "metric_tokens": 0, "output": "Paris"}
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any

from hasten.prompts.evaluation import ItemResult
from hasten.prompts.journal import Journal

_HEADER = b'{"hasten_prompt_run": 1}\n'


class RunFile:
    """Results by key. Raises ``InvalidOption`` for a file that is not one, or that another process uses."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, _HEADER, "results", _result)
        self._results = dict(self._journal.entries)

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: str) -> ItemResult | None:
        return self._results.get(key)

    def add(self, key: str, result: ItemResult) -> None:
        """Keep a result. Raises ``HastenError`` if the disk is full."""
        self._journal.add({"key": key, **result.as_dict()})
        self._results[key] = result

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._journal.close()


def _result(record: dict[str, Any]) -> tuple[str, ItemResult]:
    """Return the key and the result of a line. Raises ``ValueError``, ``TypeError`` or ``KeyError``."""
    counts = {name: record[name] for name in ("prompt_tokens", "output_tokens", "metric_tokens")}
    key, score, output = record["key"], record["score"], record["output"]
    are_right = type(score) is float and math.isfinite(score) and isinstance(key, str) and isinstance(output, str | None)
    if not are_right or not all(type(count) is int and 0 <= count < 2**53 for count in counts.values()):
        raise ValueError
    return key, ItemResult(score=score, output=output, **counts)
