"""Prompts for a teacher: the lines of a text file, or the records of a JSONL file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.compress.distill.data.record_file import read_records, text_of
from hasten.compress.distill.data.text_teacher import Message, TeacherPrompt
from hasten.quality.documents import read_text_file

_ALLOWED = '{"input": "..."}, {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class PromptRecord:
    prompt: TeacherPrompt  # as the teacher gets it
    input_text: str  # as the student's example has it; of a conversation, its contents with blank lines between
    others: Mapping[str, Any]  # further keys of the record


def read_prompts(file: Path) -> list[PromptRecord]:
    """Return the prompts of a file. Blank lines are skipped.

    A record has its prompt under "messages", "prompt" or "input". Raises ``InvalidOption`` that names the first wrong line.
    """
    if file.suffix.lower() == ".jsonl":
        return read_records(file, _read, _ALLOWED)
    # str.splitlines would also cut a prompt at a form feed or at a line separator inside it.
    lines = (line.removesuffix("\r") for line in read_text_file(file).split("\n"))
    return [PromptRecord(line, line, {}) for line in lines if line.strip()]


def _read(record: Mapping[str, Any]) -> PromptRecord:
    others = {name: value for name, value in record.items() if name not in ("prompt", "input", "output")}
    if "messages" in record:
        messages = _messages(record["messages"])
        return PromptRecord(messages, "\n\n".join(message["content"] for message in messages), others)
    text = text_of(record, "prompt" if "prompt" in record else "input")
    return PromptRecord(text, text, others)


def _messages(value: Any) -> tuple[Message, ...]:
    """Return a conversation that a user ends. Raises as ``parse`` of ``read_records``."""
    if not isinstance(value, list) or not value:
        raise ValueError
    messages = tuple({"role": str(message["role"]), "content": text_of(message, "content")} for message in value)
    if any(message["role"] not in _ROLES for message in messages) or messages[-1]["role"] != "user":
        raise ValueError
    return messages
