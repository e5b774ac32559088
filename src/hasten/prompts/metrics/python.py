"""``python``: a function ``score(input, output, reference) -> float`` of the user's file.

The file is the user's own code and runs with the user's rights. With several references, the best score counts.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.core.errors import InvalidOption, show
from hasten.prompts.metric import Attempt, ItemScore, text_digest
from hasten.quality.documents import read_text_file
from hasten.quality.function_process import FunctionFailed, FunctionProcess

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

ARGUMENT: str | None = "FILE.py:FUNCTION"


def make_metric(argument: str | None) -> PythonMetric:
    file, _, function = (argument or "").rpartition(":")
    if not file or not function.isidentifier():
        raise InvalidOption("the metric python needs a file and a function", got=show(argument), allowed=f"python:{ARGUMENT}")
    return PythonMetric(Path(file), function)


class PythonMetric:
    """Close it to end the process."""

    needs_output = True
    low, high, is_binary = -math.inf, math.inf, False

    def __init__(self, file: Path, function: str, process: FunctionProcess | None = None) -> None:
        self.name = f"python:{file}:{function}"
        self.identity = text_digest("python", read_text_file(file), function)
        self._process = process or FunctionProcess(file, function)

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        """Return the score of one item.

        Raises ``FunctionFailed`` if the function raises or hangs, and ``InvalidOption`` if the file cannot be imported.
        """
        assert attempt.output is not None
        item, scores = attempt.item, []
        for reference in item.references:
            try:
                scores.append(self._process.call(item.input_text, attempt.output, reference))
            except FunctionFailed as error:
                got = error.got
                raise FunctionFailed(
                    f"the function of the metric {self.name} failed, because {error.what}",
                    got=got,
                    allowed=error.allowed or "a finite number",
                    remedy="Correct the function; it is called with input, output and reference",
                ) from None
        return ItemScore(max(scores))

    def close(self) -> None:
        self._process.close()
