"""Pairs of input and output of a JSONL file, and the outputs of a file by their input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.compress.distill.data.record_file import read_records, text_of

_PAIR = '{"input": "...", "output": "..."}'


@dataclass(frozen=True, slots=True)
class Pair:
    input_text: str
    output: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """Different outputs for one input, in the order of the file."""

    input_text: str
    outputs: tuple[str, ...]


def read_pairs(file: Path) -> list[Pair]:
    """Return the pairs of a file. Raises ``InvalidOption`` that names the first wrong line."""
    return read_records(file, lambda record: Pair(text_of(record, "input"), text_of(record, "output")), _PAIR)


def read_candidates(file: Path) -> list[Candidates]:
    """Return the outputs by input. Lines of the same input are joined.

    A record has an "output", or a list "outputs". Raises ``InvalidOption`` that names the first wrong line.
    """
    allowed = f'{_PAIR} or {{"input": "...", "outputs": ["...", ...]}}'
    return group_candidates(read_records(file, _read_outputs, allowed))


def group_candidates(records: list[tuple[str, list[str]]]) -> list[Candidates]:
    """Return inputs with their different outputs, in the order of their first lines."""
    outputs: dict[str, dict[str, None]] = {}
    for input_text, found in records:
        outputs.setdefault(input_text, {}).update(dict.fromkeys(found))
    return [Candidates(input_text, tuple(found)) for input_text, found in outputs.items()]


def _read_outputs(record: Mapping[str, Any]) -> tuple[str, list[str]]:
    if "outputs" not in record:
        return text_of(record, "input"), [text_of(record, "output")]
    outputs = record["outputs"]
    if not isinstance(outputs, list) or not outputs:
        raise ValueError
    return text_of(record, "input"), [text_of({"output": output}, "output") for output in outputs]
