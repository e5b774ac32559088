"""``RequestTotals``: the metrics of an engine's finished requests, added up."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.core.output import RequestOutput
from hasten.core.result import FinishReason

_BY_SEVERITY = (FinishReason.ERROR, FinishReason.ABORT, FinishReason.LENGTH, FinishReason.STOP)


@dataclass(slots=True)
class RequestTotals:
    """Each request counts once, when it ends; the fields are those of ``RequestMetrics``."""

    num_added: int = 0  # those that still wait or run included
    finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FinishReason, 0))
    # Of requests that were scheduled; a preempted one does not look its prompt up in the prefix cache again.
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_shareable_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0

    def count(self, output: RequestOutput) -> None:
        """Add a finished request."""
        metrics = output.metrics
        self.finished[_reason(output)] += 1
        self.num_output_tokens += metrics.num_output_tokens
        self.num_preemptions += metrics.num_preemptions
        if metrics.first_scheduled is not None:
            self.num_prompt_tokens += metrics.num_prompt_tokens
            self.num_cached_tokens += metrics.num_cached_tokens
            self.num_shareable_tokens += metrics.num_shareable_tokens


def _reason(output: RequestOutput) -> FinishReason:
    """Return the most severe reason among the request's outputs."""
    reasons = [FinishReason.ERROR] if output.error is not None else [completion.finish_reason for completion in output.outputs]
    return next((reason for reason in _BY_SEVERITY if reason in reasons), FinishReason.STOP)
