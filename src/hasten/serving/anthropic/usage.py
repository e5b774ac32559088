"""``Usage``: the tokens of a request, each counted once.

The prompt has three parts. Tokens up to the end of the longest pinned prefix of earlier requests are read from the cache. Those
from there to the last pin that this request has set are written to it, up to the last one of an hour for an hour. The rest are
``input_tokens``, those that an unmarked prefix in the cache gave too. A pin that the engine refused writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.core.output import RequestMetrics
from hasten.serving.anthropic.breakpoints import SECONDS


@dataclass(frozen=True, slots=True)
class Usage:
    input: int
    cache_read: int = 0
    written_5m: int = 0
    written_1h: int = 0

    @classmethod
    def of(cls, num_prompt_tokens: int, metrics: RequestMetrics | None) -> Usage:
        """``metrics``: of the first delta; None if no step computed the request, which then has set no pins."""
        if metrics is None:
            return cls(num_prompt_tokens)
        read = metrics.num_pinned_tokens
        hour_end = max((pin.num_tokens for pin in metrics.new_pins if pin.seconds == SECONDS["1h"]), default=0)
        hour_end = max(read, hour_end)
        end = max(hour_end, max((pin.num_tokens for pin in metrics.new_pins), default=0))
        return cls(num_prompt_tokens - end, read, end - hour_end, hour_end - read)

    def as_message_usage(self, num_output_tokens: int) -> dict[str, Any]:
        """Return the usage of a message."""
        lifetimes = {"ephemeral_5m_input_tokens": self.written_5m, "ephemeral_1h_input_tokens": self.written_1h}
        return {**self.as_delta_usage(num_output_tokens), "cache_creation": lifetimes, "service_tier": "standard"}

    def as_delta_usage(self, num_output_tokens: int) -> dict[str, Any]:
        """Return the usage of a stream so far."""
        return {
            "input_tokens": self.input,
            "cache_creation_input_tokens": self.written_5m + self.written_1h,
            "cache_read_input_tokens": self.cache_read,
            "output_tokens": num_output_tokens,
        }
