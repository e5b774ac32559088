"""``diagnose``: every fault of one output, the one to deal with first at the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from hasten.core.result import FinishReason, TokenLogprob
from hasten.core.sampling_params import SamplingParams
from hasten.quality.diagnosis.advice import advise
from hasten.quality.diagnosis.degenerate import measure_degenerate
from hasten.quality.diagnosis.finding import Advice, Fault, Finding
from hasten.quality.diagnosis.mixed_scripts import measure_mixed_scripts
from hasten.quality.diagnosis.observed import Detector, Measurement, ObservedOutput
from hasten.quality.diagnosis.prompt_order import measure_prompt_order
from hasten.quality.diagnosis.repetition import measure_repetition
from hasten.quality.diagnosis.too_long import measure_too_long
from hasten.quality.diagnosis.too_short import measure_too_short
from hasten.quality.diagnosis.truncation import measure_truncation

# In the order in which they are dealt with: a loop explains that an output is long and cut.
DETECTORS: Mapping[Fault, Detector] = MappingProxyType(
    {
        "repetition": measure_repetition,
        "degenerate": measure_degenerate,
        "mixed_scripts": measure_mixed_scripts,
        "too_long": measure_too_long,
        "too_short": measure_too_short,
        "truncation": measure_truncation,
    }
)


class Answer(Protocol):
    """One answer of a request, as ``CompletionOutput`` is."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def stop_reason(self) -> int | str | None: ...


def diagnose_request(prompt: str | None, answers: Sequence[Answer], params: SamplingParams) -> tuple[Finding, ...]:
    """Return the faults of all answers of a request; those that were cancelled or failed have none."""
    findings: list[Finding] = []
    for answer in answers:
        if answer.finish_reason not in (FinishReason.ABORT, FinishReason.ERROR):
            observed = ObservedOutput(
                text=answer.text,
                prompt=prompt,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs or (),
                finish_reason=answer.finish_reason,
                stop_reason=answer.stop_reason,
                params=params,
            )
            findings += diagnose(observed, answer.index)
    return tuple(findings)


def diagnose(output: ObservedOutput, index: int = 0) -> tuple[Finding, ...]:
    """Return the faults of an output, each with the setting to turn next; empty for a good one.

    An output that ended in the form of its ``structured_outputs`` is good: the form, not the model, made it short or repeated.
    """
    if output.params.structured_outputs is not None and output.finish_reason == FinishReason.STOP and output.stop_reason is None:
        return ()
    measured = {fault: detect(output) for fault, detect in DETECTORS.items()}
    return tuple(
        Finding(fault, found, advise(fault, found, output), index)
        for fault, found in measured.items()
        if found.is_fault and not _is_explained(fault, measured)
    )


def diagnose_prompts(prompts: Sequence[str] | Sequence[Sequence[int]]) -> Finding | None:
    """Return the finding that these prompts share text after what varies, or None."""
    found = measure_prompt_order(prompts)
    return Finding("prompt_order", found, Advice("prompt")) if found.is_fault else None


def _is_explained(fault: Fault, measured: Mapping[Fault, Measurement]) -> bool:
    """Whether another finding says the same: a loop has no alternatives, and a limit ends it."""
    if fault == "degenerate":
        return measured["degenerate"].kind == "peaked" and measured["repetition"].is_fault
    return fault == "truncation" and (measured["repetition"].is_fault or measured["too_long"].is_fault)
