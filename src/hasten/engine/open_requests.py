"""``OpenRequests``: counts and token times of an engine's requests while they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasten.core.output import Delta, RequestOutput
from hasten.core.result import FinishReason
from hasten.engine.request_histograms import RequestHistograms

if TYPE_CHECKING:
    from hasten.scheduling.sequence import ScheduledRequest

_COMPLETE = frozenset({FinishReason.STOP, FinishReason.LENGTH})


@dataclass(slots=True)
class OpenRequests:
    histograms: RequestHistograms = field(default_factory=RequestHistograms)
    # Of requests that have their first token, those that have ended since included.
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    num_output_tokens: int = 0  # so far
    _requests: dict[str, ScheduledRequest] = field(default_factory=dict)
    # Request id and index of an answer -> time of its last token.
    _last_token: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, scheduled: ScheduledRequest) -> None:
        self._requests[scheduled.request.request_id] = scheduled

    @property
    def num_preemptions(self) -> int:
        """Preemptions of the requests that have not ended."""
        return sum(scheduled.num_preemptions for scheduled in self._requests.values())

    def count(self, deltas: Sequence[Delta], now: float) -> None:
        """Count the tokens of one step, and forget the requests that end with it.

        k tokens of one delta count as k tokens that came at equal intervals since the answer's last one.
        """
        last_token = self._last_token
        num_tokens: dict[float, int] = {}  # by seconds per token; most answers of a step share one value
        for delta in deltas:
            num = len(delta.token_ids)
            if num:
                self.num_output_tokens += num
                answer = (delta.request_id, delta.index)
                last = last_token.get(answer)
                if last is None:
                    self._begin(delta.request_id, now)
                else:
                    seconds = (now - last) / num
                    num_tokens[seconds] = num_tokens.get(seconds, 0) + num
                last_token[answer] = now
            if delta.output is not None:
                self._end(delta.output)
        for seconds, num in num_tokens.items():
            self.histograms.token.add(seconds, num)

    def _begin(self, request_id: str, now: float) -> None:
        """Count the prompt of a request that has its first token."""
        scheduled = self._requests.get(request_id)
        if scheduled is None or any((request_id, index) in self._last_token for index in range(scheduled.request.params.n)):
            return
        self.num_prompt_tokens += scheduled.request.num_initial_tokens
        self.num_cached_tokens += scheduled.num_cached_tokens
        self.histograms.first_token.add(now - scheduled.request.arrival)

    def _end(self, output: RequestOutput) -> None:
        scheduled = self._requests.pop(output.request_id, None)
        if scheduled is None:
            return
        for index in range(scheduled.request.params.n):
            self._last_token.pop((output.request_id, index), None)
        reasons = {completion.finish_reason for completion in output.outputs}
        if output.error is None and reasons and reasons <= _COMPLETE:
            self.histograms.end(scheduled.request, output)
