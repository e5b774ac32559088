"""``ThoughtMarks``: the texts between which a model writes its thoughts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    start: str  # begins a thought; some chat templates write it at the end of the prompt
    ends: tuple[str, ...]  # each ends the thought; the answer follows the first one
    closing: str  # closes a thought whose budget is used up; it ends with the first of ``ends``
