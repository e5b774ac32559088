"""Reading of task files: one item per line, for exact match or for multiple choice.

::

    {"prompt": "2 + 2 =", "answer": "4"}                                    exact match
    {"prompt": "The capital of France is", "answer": ["Paris", "paris"]}    exact match, either of them
    {"question": "Water is", "choices": ["wet", "dry"], "answer": 0}        multiple choice

"question" is another word for "prompt". The answer of a multiple choice is an index or the text of the choice. Other keys are
ignored.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.core.errors import InvalidOption, show
from hasten.core.unicode_text import is_unicode
from hasten.quality.documents import read_text_file

_PROMPT_KEYS = ("prompt", "question")


@dataclass(frozen=True, slots=True)
class ExactMatch:
    line: int  # in the file, from 1
    prompt: str
    answers: tuple[str, ...]  # any of them is right


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    line: int
    prompt: str
    choices: tuple[str, ...]
    answer: int  # index of the right choice


TaskItem = ExactMatch | MultipleChoice


def read_task(file: Path) -> list[TaskItem]:
    """Return the items of a task file, in order; blank lines are skipped.

    Raises ``InvalidOption`` that names the first wrong line.
    """
    items = []
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            items.append(_read_item(number, line))
        except InvalidOption as fault:
            raise InvalidOption(f"line {number} of {file}: {fault.what}", got=fault.got, allowed=fault.allowed) from None
    return items


def _read_item(number: int, line: str) -> TaskItem:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidOption("this is not JSON", got=show(line), allowed='one {"prompt": ..., "answer": ...} per line') from None
    if not isinstance(record, dict):
        raise InvalidOption("this is not a JSON object", got=show(record), allowed='{"prompt": ..., "answer": ...}')
    prompt = _prompt(record)
    if "answer" not in record:
        allowed = 'a text or a list of texts; with "choices", an index or a choice'
        raise InvalidOption('"answer" is missing', got=_keys(record), allowed=allowed)
    if "choices" not in record:
        if similar := difflib.get_close_matches("choices", record, n=1, cutoff=0.8):
            raise InvalidOption(f"the key {show(similar[0])} has no meaning", got=_keys(record), allowed='"choices"')
        return ExactMatch(number, prompt, _answers(record["answer"]))
    choices = _choices(record["choices"])
    return MultipleChoice(number, prompt, choices, _answer_index(record["answer"], choices))


def _prompt(record: Mapping[str, Any]) -> str:
    keys = [key for key in _PROMPT_KEYS if key in record]
    if len(keys) != 1:
        what = '"prompt" is missing' if not keys else '"prompt" and "question" are given, which mean the same'
        raise InvalidOption(what, got=_keys(record), allowed='one of "prompt" and "question"')
    prompt = record[keys[0]]
    if not _is_text(prompt):
        raise InvalidOption(f'"{keys[0]}" is not a text', got=show(prompt), allowed="Unicode text that is not blank")
    return str(prompt)


def _answers(value: object) -> tuple[str, ...]:
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(map(_is_text, answers)):
        allowed = "a text that is not blank, or a list of such texts; numbers are written as texts"
        raise InvalidOption('"answer" is not a text', got=show(value), allowed=allowed)
    return tuple(answers)


def _choices(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2 or not all(map(_is_text, value)):
        raise InvalidOption('"choices" are not a list of texts', got=show(value), allowed="two texts or more that are not blank")
    if len({choice.strip() for choice in value}) < len(value):
        raise InvalidOption('"choices" repeat a text', got=show(value), allowed="different texts")
    return tuple(value)


def _answer_index(value: object, choices: tuple[str, ...]) -> int:
    if type(value) is int and 0 <= value < len(choices):
        return value
    if isinstance(value, str):
        found = [index for index, choice in enumerate(choices) if choice.strip() == value.strip()]
        if found:
            return found[0]
    allowed = f"an index from 0 to {len(choices) - 1}, or the text of a choice"
    raise InvalidOption('"answer" is not one of the choices', got=show(value), allowed=allowed)


def _is_text(value: object) -> bool:
    """Return whether the value is Unicode text that is not blank."""
    return is_unicode(value) and bool(value.strip())


def _keys(record: Mapping[str, Any]) -> str:
    return f"the keys {show(list(record))}"
