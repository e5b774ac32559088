"""``ExamplePool``: examples of a task, from a file, for the templates that show some of them.

One example per line, with the same columns in every line::

    {"input": "2 + 2", "output": "4"}
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.core.errors import InvalidOption, nearest, show
from hasten.core.unicode_text import is_unicode
from hasten.prompts.template import MAX_EXAMPLES
from hasten.quality.documents import read_text_file

Example = Mapping[str, str]
DEFAULT_COLUMNS = ("input", "output")
MAX_BYTES = 1 << 28  # of a file
_MAX_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class ExamplePool:
    """Examples with the same columns.

    ``input_columns`` are those that a query has, too; the others are the answer.
    """

    examples: tuple[Example, ...]
    input_columns: tuple[str, ...] = ("input",)

    @property
    def input_texts(self) -> list[str]:
        """The text of each example that is compared with a query."""
        return [self.input_text(example) for example in self.examples]

    def input_text(self, query: Example) -> str:
        return "\n".join(query[name] for name in self.input_columns)

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """The answer of each example."""
        return [tuple(text for name, text in example.items() if name not in self.input_columns) for example in self.examples]


def read_examples(file: Path, variables: Collection[str] = ("input",)) -> ExamplePool:
    """Return the examples of a JSONL file.

    ``variables``: those of the template. The columns are "input" and "output" if "input" is a variable; otherwise those of the
    first line, of which one or more are variables and one or more are not. Raises ``InvalidOption`` that names the first wrong
    line.
    """
    _check_size(file)
    columns: tuple[str, ...] | None = DEFAULT_COLUMNS if "input" in variables else None
    examples: list[Example] = []
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            example = _read_example(line, columns)
            if columns is None:
                _check_columns(example, variables)
        except InvalidOption as fault:
            what = f"line {number} of {file}: {fault.what}"
            raise InvalidOption(what, got=fault.got, allowed=fault.allowed, remedy=fault.remedy) from None
        columns = columns or tuple(example)
        if len(examples) == MAX_EXAMPLES:
            raise InvalidOption(f"the file {file} has too many examples", allowed=f"up to {MAX_EXAMPLES:,}")
        examples.append({name: example[name] for name in columns})
    assert columns is not None  # the file is not blank
    return ExamplePool(tuple(examples), tuple(name for name in columns if name in variables))


def _check_size(file: Path) -> None:
    try:
        num_bytes = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError):  # no name of a file; the reader says so
        return
    if file.exists() and (num_bytes is None or num_bytes > MAX_BYTES):
        got = "no regular file" if num_bytes is None else f"{num_bytes:,} bytes"
        raise InvalidOption(f"the examples in {file} cannot be read", got=got, allowed=f"a file of up to {MAX_BYTES:,} bytes")


def _read_example(line: str, columns: Sequence[str] | None) -> dict[str, str]:
    allowed = "{" + ", ".join(f'"{name}": "..."' for name in columns or DEFAULT_COLUMNS) + "}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidOption("this is not JSON", got=show(line), allowed=allowed) from None
    if not isinstance(record, dict) or len(record) > _MAX_COLUMNS:
        raise InvalidOption("this is not an example", got=show(record), allowed=allowed)
    wrong = [name for name, text in record.items() if not (is_unicode(name) and is_unicode(text))]
    if wrong:
        allowed = "Unicode texts; numbers are written as texts"
        raise InvalidOption(f"the column {show(wrong[0])} is not a text", got=show(record[wrong[0]]), allowed=allowed)
    if columns is not None and set(record) != set(columns):
        unknown = sorted(set(record) - set(columns))
        missing = sorted(set(columns) - set(record))
        what = f"the column {show(missing[0])} is missing" if missing else f"the column {show(unknown[0])} has no meaning"
        remedy = nearest(unknown[0], missing or columns) if unknown else None
        raise InvalidOption(
            what, got=f"the columns {show(list(record))}", allowed=f"the columns {', '.join(columns)}", remedy=remedy
        )
    return record


def _check_columns(example: Example, variables: Collection[str]) -> None:
    known = ", ".join(sorted(variables)) or "none"
    if not any(name in variables for name in example):
        raise InvalidOption(
            "no column is a variable of the template", got=f"the columns {show(list(example))}", allowed=f"the variables {known}"
        )
    if all(name in variables for name in example):
        raise InvalidOption(
            "every column is a variable of the template, so none is the answer",
            got=f"the columns {show(list(example))}",
            remedy="Add a column with the answer",
        )
