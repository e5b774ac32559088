"""``ObservedOutput``: what the detectors see of one output; ``Measurement``: what one measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hasten.core.result import TokenLogprob
from hasten.core.sampling_params import SamplingParams

Unit = Literal["token", "character"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedOutput:
    """One output. Only the text is needed; each further field lets more detectors work, or work better."""

    text: str
    prompt: str | None = None
    token_ids: Sequence[int] = ()  # with them, offsets of loops count tokens
    logprobs: Sequence[TokenLogprob] = ()  # one per token; degenerate distributions are measured on them only
    finish_reason: str | None = None  # None: unknown
    stop_reason: int | str | None = None
    params: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How much of one fault an output has."""

    value: float  # 0 without the fault; comparable between outputs of the same prompt
    is_fault: bool
    kind: str = ""  # which sentence describes it
    offset: int | None = None  # where the fault begins in the output
    unit: Unit = "character"
    # What a sentence quotes: numbers and short texts.
    details: Mapping[str, float | int | str] = field(default_factory=dict)


class Detector(Protocol):
    def __call__(self, output: ObservedOutput, /) -> Measurement:
        """Return how much of its fault the output has. It never raises for any text."""


NOTHING = Measurement(value=0.0, is_fault=False)
