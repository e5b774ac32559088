"""Lengths: examples that are too short or too long."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.compress.distill.selection.options import SelectOptions
from hasten.compress.distill.selection.pool import Record
from hasten.compress.distill.selection.shingles import split_words

TOO_SHORT, TOO_LONG = "outputs of too few words", "examples of too many words"


def drop_by_length(records: Sequence[Record], options: SelectOptions) -> tuple[list[Record], dict[str, int]]:
    """Return the records within the limits, and how many were dropped for which reason."""
    kept, dropped = [], {TOO_SHORT: 0, TOO_LONG: 0}
    for record in records:
        num_words = len(split_words(record.output))
        if num_words < options.min_words:
            dropped[TOO_SHORT] += 1
        elif options.max_words is not None and num_words + len(split_words(record.input)) > options.max_words:
            dropped[TOO_LONG] += 1
        else:
            kept.append(record)
    return kept, dropped
