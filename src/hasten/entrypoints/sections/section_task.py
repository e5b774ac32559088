"""``SectionTask``: one question, its headings, and the settings of each request."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import InvalidRequest, show
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.sections.router import Route, route
from hasten.entrypoints.sections.section_prompts import NEXT_HEADING
from hasten.entrypoints.sections.skeleton import check_headings, check_max_sections

MAX_SECTION_TOKENS = 2**20
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SectionTask:
    question: str
    params: SamplingParams
    headings: tuple[str, ...] | None  # None: the model writes an outline
    max_sections: int
    section_tokens: int
    route: Route

    @classmethod
    def checked(
        cls,
        question: object,
        params: SamplingParams,
        skeleton: Sequence[str] | None,
        max_sections: int,
        section_tokens: int,
        router: bool,
    ) -> SectionTask:
        """Return the task. Raises ``InvalidRequest`` for arguments that cannot be one."""
        if not isinstance(question, str) or not question.strip():
            raise InvalidRequest("there is no question", got=show(question), allowed="a text")
        if not isinstance(router, bool):
            raise InvalidRequest("router is no switch", got=show(router), allowed="True or False")
        if type(section_tokens) is not int or not 1 <= section_tokens <= MAX_SECTION_TOKENS:
            raise InvalidRequest("section_tokens is out of range", got=show(section_tokens), allowed=f"1 to {MAX_SECTION_TOKENS}")
        _check_one_output(params)
        headings = None if skeleton is None else check_headings(skeleton, check_max_sections(max_sections))
        decision = dataclasses.replace(route(question), forced=not router)
        return cls(question, params, headings, check_max_sections(max_sections), section_tokens, decision)

    @property
    def in_sections(self) -> bool:
        return self.route.suits or self.route.forced

    def section_params(self, index: int, num_free_tokens: int) -> SamplingParams:
        """Return the settings of a section: its length, its seed, and an end where the next heading begins.

        ``num_free_tokens``: after the prompt, in the context.
        """
        stop = tuple(dict.fromkeys((*self.params.stop, NEXT_HEADING)))
        seed = None if self.params.seed is None else (self.params.seed + index) % _MAX_SEED
        return self.params.replace(max_tokens=max(1, min(self.section_tokens, num_free_tokens)), stop=stop, seed=seed)

    def plain_params(self, num_free_tokens: int) -> SamplingParams:
        """Return the settings of plain decoding. ``num_free_tokens`` as in ``section_params``."""
        if self.params.max_tokens is not None:
            return self.params
        max_tokens = max(1, self.params.min_tokens, min(self.section_tokens * self.max_sections, num_free_tokens))
        return self.params.replace(max_tokens=max_tokens)


def _check_one_output(params: SamplingParams) -> None:
    """Raise ``InvalidRequest`` for settings that give more than one text, or what sections do not report."""
    wrong = [f"n={params.n}"] if params.n > 1 else []
    wrong += [f"beam_width={params.beam_width}"] if params.beam_width is not None else []
    wrong += [f"logprobs={params.logprobs}"] if params.logprobs is not None else []
    if wrong:
        raise InvalidRequest(
            "an answer in sections is one text without log-probabilities",
            got=", ".join(wrong),
            allowed="n=1, and neither beam_width nor logprobs",
        )
