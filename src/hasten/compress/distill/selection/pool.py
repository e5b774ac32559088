"""``Record``: an example of the pool as its file has it. ``read_pool`` reads a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hasten.core.errors import InvalidOption
from hasten.quality.documents import read_text_file
from hasten.training.examples import example_texts


class Record(NamedTuple):
    number: int  # of its line, from 1
    line: str  # with all its keys
    input: str
    output: str


def read_pool(file: Path) -> list[Record]:
    """Return the records of a file with one ``{"input": ..., "output": ...}`` per line.

    Blank lines are skipped. Raises ``InvalidOption`` that names the first wrong line.
    """
    records = []
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if line.strip():
            records.append(Record(number, line.strip(), *example_texts(file, number, line)))
    if not records:
        raise InvalidOption(f"the file {file} has no examples", remedy="Give a file with one per line")
    return records
