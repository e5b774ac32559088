"""What ``LLM.generate_sections`` returns, and what ``stream_sections`` yields. Plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hasten.core.output import RequestMetrics
from hasten.core.result import FinishReason
from hasten.entrypoints.sections.router import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section, decoded after ``prompt_token_ids``.

    Its prompt is the shared prefix, the sections that it waited for, and its heading.
    """

    index: int
    heading: str  # empty if the answer was decoded plainly
    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    seed: int | None
    finish_reason: FinishReason | None = None
    error: str | None = None
    waits_for: tuple[int, ...] = ()  # indices of the sections that were written before it, with their text in its prompt
    reason: str | None = None  # why it waits; None if it does not
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionsOutput:
    question: str
    route: Route
    plain_reason: str | None  # why the answer was decoded plainly, as one section; None: in sections
    skeleton: tuple[str, ...]  # empty if the answer was decoded plainly
    sections: tuple[Section, ...]
    text: str  # headings and sections; the texts of all deltas
    num_shared_tokens: int  # that begin the prompt of every section
    max_parallel: int  # most sections that were open at a time
    skeleton_metrics: RequestMetrics | None  # of the request for an outline; None without one
    wall_time: float  # seconds, the outline included

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of the sections and of the outline."""
        return sum(metrics.num_output_tokens for metrics in self._all_metrics())

    @property
    def num_prompt_tokens(self) -> int:
        return sum(metrics.num_prompt_tokens for metrics in self._all_metrics())

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache gave."""
        return sum(metrics.num_cached_tokens for metrics in self._all_metrics())

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(f"section {each.index + 1}: {each.error}" for each in self.sections if each.error is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with the token counts."""
        counts = ("num_output_tokens", "num_prompt_tokens", "num_cached_tokens")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in counts}

    def _all_metrics(self) -> list[RequestMetrics]:
        outline = [] if self.skeleton_metrics is None else [self.skeleton_metrics]
        return [*outline, *(section.metrics for section in self.sections)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionDelta:
    """The next part of the answer; the texts of all deltas are ``SectionsOutput.text``."""

    index: int  # of the section
    text: str
    section: Section | None = None  # the complete section; in its last delta only
    output: SectionsOutput | None = None  # the complete answer; in the last delta only
