"""``OrderedText``: the text of an answer in order, while its sections grow at the same time."""

from __future__ import annotations

from hasten.entrypoints.sections.output import Section, SectionDelta
from hasten.entrypoints.sections.section_prompts import SEPARATOR, heading_line


class OrderedText:
    """It holds the text of a section until all earlier ones are complete. Empty headings are not shown."""

    def __init__(self, headings: tuple[str, ...]) -> None:
        self._headings = headings
        self._held = [""] * len(headings)
        self._has_begun = [False] * len(headings)
        self._sections: list[Section | None] = [None] * len(headings)
        self._first_open = 0  # index of the first section that is not complete
        self._parts: list[str] = []  # that were released

    @property
    def is_complete(self) -> bool:
        return self._first_open == len(self._headings)

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The complete sections."""
        return tuple(section for section in self._sections if section is not None)

    def push(self, index: int, text: str, section: Section | None) -> list[SectionDelta]:
        """Add text to a section, and return the deltas that are now in order.

        ``section``: the section, if it is complete with this text.
        """
        before = "" if self._has_begun[index] or not self._headings[index] else heading_line(self._headings[index])
        after = SEPARATOR if section is not None and index + 1 < len(self._headings) else ""
        self._has_begun[index] = True
        self._sections[index] = section
        self._held[index] += before + text + after
        released: list[SectionDelta] = []
        while self._first_open < len(self._headings):
            current, complete = self._first_open, self._sections[self._first_open]
            if self._held[current] or complete is not None:
                released.append(SectionDelta(index=current, text=self._held[current], section=complete))
            self._held[current] = ""
            if complete is None:
                break
            self._first_open += 1
        self._parts += [delta.text for delta in released]
        return released
