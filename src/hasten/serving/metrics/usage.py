"""``Usage``: what a request has cost, as routes note it for the access log."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from hasten.core.output import RequestOutput

STATE_KEY = "hasten_usage"  # in ``scope["state"]``


@dataclass(slots=True)
class Usage:
    """The counts of all engine requests of one HTTP request.

    It has neither texts nor token ids, which no log may have.
    """

    model: str | None = None  # as the server names it
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft: float | None = None  # seconds to the first token of all
    num_outputs: int = 0  # engine requests that are noted

    def add(self, output: RequestOutput) -> None:
        metrics = output.metrics
        self.num_outputs += 1
        self.prompt_tokens += metrics.num_prompt_tokens
        self.cached_tokens += metrics.num_cached_tokens
        self.output_tokens += metrics.num_output_tokens
        if metrics.ttft is not None:
            self.ttft = metrics.ttft if self.ttft is None else min(self.ttft, metrics.ttft)


def usage_of(scope: Scope) -> Usage:
    """Return the usage of a request, which is empty at first."""
    found = scope.setdefault("state", {}).setdefault(STATE_KEY, Usage())
    assert isinstance(found, Usage), type(found)
    return found
