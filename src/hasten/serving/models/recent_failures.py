"""``RecentFailures``: how often an engine has failed of late, and how long its restart waits."""

from __future__ import annotations

from collections import deque

from hasten.serving.models.clock import Clock

WINDOW = 600.0  # seconds
FIRST_DELAY, MAX_DELAY = 0.5, 30.0  # seconds; the delay doubles from one to the other


class RecentFailures:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._times: deque[float] = deque()

    def add(self) -> float:
        """Note a failure, and return the seconds to wait before the next try."""
        self._times.append(self._clock.time())
        return min(MAX_DELAY, FIRST_DELAY * 2.0 ** (self.count - 1))

    @property
    def count(self) -> int:
        """The number of failures within ``WINDOW``."""
        while self._times and self._times[0] <= self._clock.time() - WINDOW:
            self._times.popleft()
        return len(self._times)
