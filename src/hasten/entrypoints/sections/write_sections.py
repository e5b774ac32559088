"""``SectionWriter``: decodes the sections of one answer together.

A section starts when those that it refers to are complete.

::

    outline ─► shared prefix ─┬─► section 1 ──────────┐
      (or the caller's        ├─► section 2 ──┐       ├─► conclusion, which refers to all
       headings)              └─► section 3 ──┴───────┘

All requests are one stream of the engine. The scheduler computes the shared prefix once: sections wait for a prefix in flight.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Protocol

from hasten.core.errors import InvalidRequest
from hasten.core.output import Delta, RequestMetrics, RequestOutput
from hasten.core.request import Request
from hasten.core.result import FinishReason
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.input_processor import Prompt
from hasten.entrypoints.sections.ordered_text import OrderedText
from hasten.entrypoints.sections.output import Section, SectionDelta, SectionsOutput
from hasten.entrypoints.sections.references import Reference, find_references
from hasten.entrypoints.sections.section_prompts import SectionPrompts, TokenIds
from hasten.entrypoints.sections.section_task import SectionTask
from hasten.entrypoints.sections.skeleton import (
    FIRST_POINT,
    MalformedOutline,
    outline_instruction,
    outline_params,
    parse_outline,
)

Stream = Callable[[deque[Request]], Generator[Delta, None, None]]


class MakeRequest(Protocol):
    def __call__(self, prompt: Prompt, params: SamplingParams) -> Request:
        """Return a checked request. Raises ``InvalidRequest``."""
        ...


class SectionWriter:
    """Raises ``InvalidRequest`` at construction for a question or headings that cannot run."""

    def __init__(
        self,
        task: SectionTask,
        prompts: SectionPrompts,
        make_request: MakeRequest,
        stream: Stream,
        clock: Callable[[], float],
    ) -> None:
        self._task, self._prompts, self._make_request = task, prompts, make_request
        self._stream, self._clock = stream, clock
        self._pending: deque[Request] = deque()  # requests that the stream will start
        self._outline_id: str | None = None
        self._skeleton_metrics: RequestMetrics | None = None
        self._plain_reason: str | None = None
        self._shared: TokenIds = ()
        self._max_parallel = 0
        self._set_sections(())
        if not task.in_sections:
            self._decode_plainly(f"the question does not suit sections: {task.route.reason}")
        elif task.headings is not None:
            self._start(task.headings)
        else:
            self._ask_for_outline()

    def write(self) -> Generator[SectionDelta, None, None]:
        """Yield the answer in order. Closing the iterator ends all requests."""
        begin = self._clock()
        with closing(self._stream(self._pending)) as deltas:
            for delta in deltas:
                released = self._take(delta)
                if released and self._text.is_complete:
                    released[-1] = dataclasses.replace(released[-1], output=self._output(self._clock() - begin))
                yield from released

    def _set_sections(self, headings: tuple[str, ...]) -> None:
        self._headings, self._references = headings, find_references(headings)
        self._text = OrderedText(headings)
        self._section_of: dict[str, int] = {}  # request id -> index
        self._requests: dict[int, Request] = {}  # of the sections that have started
        self._complete: dict[int, Section] = {}

    def _ask_for_outline(self) -> None:
        task = self._task
        try:
            prompt_ids = self._prompts.outline(outline_instruction(task.question, task.max_sections))
            request = self._make_request(
                {"prompt_token_ids": prompt_ids}, outline_params(self._prompts.num_free_tokens(prompt_ids))
            )
        except InvalidRequest as error:
            self._decode_plainly(f"there is no outline: {error}")
            return
        self._outline_id = request.request_id
        self._pending.append(request)

    def _decode_plainly(self, reason: str) -> None:
        """Answer with one request, as one section without a heading."""
        self._plain_reason, self._shared = reason, ()
        self._pending.clear()
        self._set_sections(("",))
        params = self._task.plain_params(self._prompts.num_free_tokens(self._prompts.plain))
        self._add(0, self._make_request({"prompt_token_ids": self._prompts.plain}, params))

    def _start(self, headings: tuple[str, ...]) -> None:
        """Start the sections that refer to no other. Raises ``InvalidRequest`` if one cannot run."""
        self._set_sections(headings)
        self._shared = self._prompts.shared(headings)
        for index, reference in enumerate(self._references):
            if not reference.waits_for:
                self._add(index, self._section_request(index))

    def _section_request(self, index: int) -> Request:
        earlier = [(self._headings[j], self._complete[j].text) for j in self._references[index].waits_for]
        prompt_ids = self._prompts.section(self._shared, self._headings[index], earlier)
        params = self._task.section_params(index, self._prompts.num_free_tokens(prompt_ids))
        return self._make_request({"prompt_token_ids": prompt_ids}, params)

    def _add(self, index: int, request: Request) -> None:
        self._requests[index] = request
        self._section_of[request.request_id] = index
        self._pending.append(request)
        self._max_parallel = max(self._max_parallel, len(self._requests) - len(self._complete))

    def _take(self, delta: Delta) -> list[SectionDelta]:
        """Return the deltas of the answer that this delta of a request completes."""
        if delta.request_id == self._outline_id:
            if delta.output is not None:
                self._end_outline(delta.output)
            return []
        index = self._section_of[delta.request_id]
        if delta.output is None:
            return self._text.push(index, delta.text, None)
        section = self._section(index, delta.output)
        return [*self._text.push(index, delta.text, section), *self._complete_section(section)]

    def _end_outline(self, output: RequestOutput) -> None:
        """Start the sections of the model's outline, or decode plainly if there is none."""
        self._skeleton_metrics = output.metrics
        answer = output.outputs[0] if output.outputs else None
        try:
            if output.error is not None or answer is None:
                raise MalformedOutline(f"the request for an outline ended with an error: {output.error}")
            if answer.finish_reason is FinishReason.LENGTH:
                raise MalformedOutline(f"the model's outline did not end within {len(answer.token_ids)} tokens")
            self._start(parse_outline(FIRST_POINT + answer.text, self._task.max_sections))
        except (MalformedOutline, InvalidRequest) as error:
            self._decode_plainly(str(error))

    def _section(self, index: int, output: RequestOutput) -> Section:
        answer = output.outputs[0] if output.outputs else None
        reference = self._references[index]
        return Section(
            index=index,
            heading=self._headings[index],
            text="" if answer is None else answer.text,
            token_ids=() if answer is None else answer.token_ids,
            prompt_token_ids=output.prompt_token_ids,
            seed=output.seed,
            finish_reason=None if answer is None else answer.finish_reason,
            error=output.error,
            waits_for=reference.waits_for,
            reason=reference.reason,
            metrics=output.metrics,
        )

    def _complete_section(self, section: Section) -> list[SectionDelta]:
        """Start the sections that waited for this one alone; one that cannot run is complete with an error."""
        self._complete[section.index] = section
        released: list[SectionDelta] = []
        for index, reference in enumerate(self._references):
            if index in self._requests or index in self._complete or not set(reference.waits_for) <= self._complete.keys():
                continue
            try:
                self._add(index, self._section_request(index))
            except InvalidRequest as error:
                failed = self._failed(index, reference, error)
                released += [*self._text.push(index, "", failed), *self._complete_section(failed)]
        return released

    def _failed(self, index: int, reference: Reference, error: InvalidRequest) -> Section:
        return Section(
            index=index,
            heading=self._headings[index],
            text="",
            token_ids=(),
            prompt_token_ids=(),
            seed=None,
            finish_reason=FinishReason.ERROR,
            error=str(error),
            waits_for=reference.waits_for,
            reason=reference.reason,
            metrics=RequestMetrics(arrival=self._clock()),
        )

    def _output(self, wall_time: float) -> SectionsOutput:
        is_plain = self._plain_reason is not None
        return SectionsOutput(
            question=self._task.question,
            route=self._task.route,
            plain_reason=self._plain_reason,
            skeleton=() if is_plain else self._headings,
            sections=self._text.sections,
            text=self._text.text,
            num_shared_tokens=len(self._shared),
            max_parallel=self._max_parallel,
            skeleton_metrics=self._skeleton_metrics,
            wall_time=wall_time,
        )


def last_output(deltas: Generator[SectionDelta, None, None]) -> SectionsOutput:
    """Return the complete output of a stream."""
    with closing(deltas):  # an interrupt between two deltas ends the requests too
        output = None
        for delta in deltas:
            output = delta.output
    assert output is not None, "the stream of sections ended without an output"
    return output
