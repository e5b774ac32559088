"""Fixtures: a recorded teacher in a temporary file, and the demo model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hasten import LLM
from hasten.compress.distill.data.answer_file import AnswerFile
from hasten.compress.distill.data.recorded_teacher import RecordedTeacher
from hasten.compress.distill.data.text_teacher import TextTeacher

Record = Callable[..., RecordedTeacher]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """Return a function from a teacher to the same teacher with its answers kept, in a file of its own or a named one."""
    with ExitStack() as stack:
        count = 0

        def make(teacher: TextTeacher, name: str | None = None) -> RecordedTeacher:
            nonlocal count
            count += 1
            answers = stack.enter_context(AnswerFile(tmp_path / (name or f"answers{count}"), {}))
            return RecordedTeacher(teacher, answers)

        yield make


@pytest.fixture(scope="package")
def demo() -> Iterator[LLM]:
    with LLM("demo", threads=1, max_model_len=512, kv_cache_memory="32MiB") as llm:
        yield llm
