"""``Usage``: the tokens of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.core.output import Delta, RequestOutput


@dataclass(slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt

    def add(self, output: RequestOutput) -> None:
        """Count a finished request. Its prompt counts once, whatever ``n`` is."""
        self.prompt_tokens += len(output.prompt_token_ids)
        self.completion_tokens += sum(len(each.token_ids) for each in output.outputs)
        self.cached_tokens += output.metrics.num_cached_tokens

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class RunningUsage(Usage):
    """The tokens of a request that runs: its prompts, and the deltas so far."""

    def read(self, delta: Delta) -> None:
        self.completion_tokens += len(delta.token_ids)
        if delta.metrics is not None:
            self.cached_tokens += delta.metrics.num_cached_tokens
