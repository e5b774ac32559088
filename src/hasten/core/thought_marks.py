"""``ThoughtMarks``: the texts between which a model writes its thoughts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    start: str  # begins a thought; some chat templates write it at the end of the prompt
    end: str  # ends the thought, and the answer follows
    closing: str = ""  # closes a thought whose budget is used up, and ends with ``end``; empty: ``end``
