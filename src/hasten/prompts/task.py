"""``PromptTask``: inputs with accepted outputs, split into train, validation and held-out items.

::

    {"input": "2 + 2", "output": "4"}                                           the variable of the prompt is "input"
    {"input": {"city": "Paris", "year": "1900"}, "output": ["yes", "Yes"]}      two variables; either output is right

Other keys are ignored. An input stands in a file once: the same input in two parts would show the optimiser a held-out item.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from hasten.core.errors import HastenError, InvalidOption, nearest, show
from hasten.core.unicode_text import is_unicode
from hasten.quality.documents import read_text_file

_EXAMPLE = '{"input": ..., "output": ...}'
MAX_VARIABLES = 100
PARTS = ("train", "validation", "held_out")
BUILT_IN = Path(__file__).parent / "tasks"


@dataclass(frozen=True, slots=True)
class PromptItem:
    line: int  # in the file, from 1
    variables: Mapping[str, str]  # of the prompt; a text alone is the variable "input"
    references: tuple[str, ...]  # any of them is right

    @property
    def input_key(self) -> str:
        """A text that two items share if their inputs are equal."""
        return _input_key(self)

    @property
    def input_text(self) -> str:
        """The input as one text: a single variable's value, or one line ``name: value`` each."""
        if len(self.variables) == 1:
            return next(iter(self.variables.values()))
        return "\n".join(f"{name}: {value}" for name, value in self.variables.items())


class HeldOut:
    """The items that a result is reported on. They can be read once, so that nothing is chosen by them."""

    def __init__(self, items: Sequence[PromptItem]) -> None:
        self._unread: list[tuple[PromptItem, ...]] = [tuple(items)]
        self._num_items = len(items)

    def __len__(self) -> int:
        return self._num_items

    def use(self) -> tuple[PromptItem, ...]:
        """Return the items. Raises ``HastenError`` at the second call."""
        try:
            return self._unread.pop()  # one call of the interpreter, so that of two threads one fails
        except IndexError:
            raise HastenError(
                "the held-out items were read already, and a choice made by them would be reported as a result",
                remedy="Choose by the validation items",
            ) from None


@dataclass(frozen=True, slots=True)
class TaskSplit:
    train: tuple[PromptItem, ...]
    validation: tuple[PromptItem, ...]
    held_out: HeldOut


@dataclass(frozen=True, slots=True)
class PromptTask:
    file: Path
    items: tuple[PromptItem, ...]  # in the order of the file

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables, which all items have."""
        return tuple(self.items[0].variables)

    def split(self, seed: int = 0, fractions: Sequence[float] = (0.5, 0.25, 0.25)) -> TaskSplit:
        """Return the items in three disjoint parts, at random by ``seed``.

        ``fractions``: of train, validation and held-out items; they add up to 1. The part of an item depends on the inputs in the
        file, not on their order. Raises ``InvalidOption`` if a part would be empty whose fraction is not 0.
        """
        sizes = self._sizes(fractions)

        def rank(item: PromptItem) -> bytes:
            return hashlib.sha256(f"hasten/split/1\0{seed}\0{_input_key(item)}".encode()).digest()

        shuffled = sorted(self.items, key=rank)
        first, second = sizes[0], sizes[0] + sizes[1]
        return TaskSplit(tuple(shuffled[:first]), tuple(shuffled[first:second]), HeldOut(shuffled[second:]))

    def _sizes(self, fractions: Sequence[float]) -> list[int]:
        """Return the numbers of items by the method of largest remainders."""
        are_shares = len(fractions) == len(PARTS) and all(0 <= fraction <= 1 for fraction in fractions)
        if not are_shares or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise InvalidOption(
                "the fractions of the split are wrong", got=show(list(fractions)), allowed="three numbers from 0 to 1 of the sum 1"
            )
        exact = [Fraction(fraction).limit_denominator(10**6) * len(self.items) for fraction in fractions]
        sizes = [math.floor(size) for size in exact]
        by_remainder = sorted(range(len(PARTS)), key=lambda part: sizes[part] - exact[part])
        for part in by_remainder[: len(self.items) - sum(sizes)]:
            sizes[part] += 1
        empty = [name for name, size, fraction in zip(PARTS, sizes, fractions, strict=True) if fraction and not size]
        if empty:
            raise InvalidOption(
                f"{self.file} has too few items for this split",
                got=f"{len(self.items)} items, of which none would be in {', '.join(empty)}",
                remedy="Add items, or change the fractions",
            )
        return sizes


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks that ship."""
    return tuple(sorted(file.stem for file in BUILT_IN.glob("*.jsonl")))


def read_prompt_task(file: Path) -> PromptTask:
    """Return the items of a task file, or of a task that ships, by its name; blank lines are skipped.

    Raises ``InvalidOption`` that names the first wrong line.
    """
    file = _find(file)
    items: list[PromptItem] = []
    lines: dict[str, int] = {}  # of each input
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = _read_item(number, line)
            if items and item.variables.keys() != items[0].variables.keys():
                expected = f"{_names(items[0].variables)}, as in line {items[0].line}"
                raise InvalidOption('"input" has other variables', got=_names(item.variables), allowed=expected)
            if (earlier := lines.setdefault(_input_key(item), number)) != number:
                raise InvalidOption(
                    f"the input of line {earlier} stands here again", got=show(item.input_text), allowed="each input once"
                )
        except InvalidOption as fault:
            raise InvalidOption(f"line {number} of {file}: {fault.what}", got=fault.got, allowed=fault.allowed) from None
        items.append(item)
    return PromptTask(file, tuple(items))


def _find(file: Path) -> Path:
    """Return the file of a task that ships if ``file`` is a bare name that no file has, else ``file``."""
    if os.path.exists(file) or len(file.parts) != 1 or file.suffix:
        return file
    if file.name not in (names := task_names()):
        raise InvalidOption(
            "there is no such task", got=show(str(file)), allowed=f"a file, or {', '.join(names)}", remedy=nearest(file.name, names)
        )
    return BUILT_IN / f"{file.name}.jsonl"


def _input_key(item: PromptItem) -> str:
    return json.dumps(dict(item.variables), sort_keys=True)


def _read_item(number: int, line: str) -> PromptItem:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidOption("this is not JSON", got=show(line), allowed=f"one {_EXAMPLE} per line") from None
    if not isinstance(record, dict):
        raise InvalidOption("this is not a JSON object", got=show(record), allowed=_EXAMPLE)
    for key in ("input", "output"):
        if key not in record:
            similar = difflib.get_close_matches(key, record, n=1, cutoff=0.6)
            what = f'"{key}" is missing' + (f", and {show(similar[0])} has no meaning" if similar else "")
            raise InvalidOption(what, got=_names(record), allowed=_EXAMPLE)
    return PromptItem(number, _variables(record["input"]), _references(record["output"]))


def _variables(value: object) -> dict[str, str]:
    allowed = 'a text that is not blank, or {"variable": text, ...}'
    variables: Any = {"input": value} if isinstance(value, str) else value
    if not isinstance(variables, dict) or not 1 <= len(variables) <= MAX_VARIABLES:
        raise InvalidOption('"input" has the wrong type', got=show(value), allowed=allowed)
    wrong = [name for name, text in variables.items() if not (name.isidentifier() and name.isascii() and is_unicode(text))]
    if wrong:
        got = show({wrong[0]: variables[wrong[0]]})
        raise InvalidOption('"input" has a wrong variable', got=got, allowed="names of letters, digits and _; texts")
    if not any(text.strip() for text in variables.values()):
        raise InvalidOption('"input" is blank', got=show(value), allowed=allowed)
    return dict(variables)


def _references(value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(is_unicode(text) and text.strip() for text in texts):
        allowed = "a text that is not blank, or a list of such texts; numbers are written as texts"
        raise InvalidOption('"output" is not a text', got=show(value), allowed=allowed)
    return tuple(texts)


def _names(values: Mapping[str, Any]) -> str:
    return f"the keys {show(list(values))}"
