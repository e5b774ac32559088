"""``CircuitBreaker``: stops calls of a service that fails, and tries it again later.

The pattern is of Nygard, Release It!, 2007.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

MAX_FAILURES = 3  # in a row
FIRST_WAIT, MAX_WAIT = 1.0, 60.0  # seconds


class CircuitBreaker:
    """Opens after three failures in a row; then one call at a time probes.

    The waits before the probes are 1 s, 2 s, 4 s, ... up to 60 s. A probe that succeeds closes the breaker. Calls that were
    admitted before it opened or closed no longer count. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._period = 0  # its number: even while closed, odd while open
        self._num_failures = 0  # in a row, while closed
        self._wait = FIRST_WAIT
        self._next_probe = 0.0
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        return self._period % 2 == 1

    def admit(self) -> int | None:
        """Return a ticket for one call, which must end in one of the methods below; None: skip the call."""
        with self._mutex:
            if self.is_open:
                if self._is_probing or self._clock() < self._next_probe:
                    return None
                self._is_probing = True
            return self._period

    def succeed(self, ticket: int) -> bool:
        """Return whether this success closed the breaker."""
        with self._mutex:
            if ticket != self._period:
                return False
            closes = self.is_open
            if closes:
                self._period += 1
                self._is_probing, self._wait = False, FIRST_WAIT
            self._num_failures = 0
            return closes

    def fail(self, ticket: int) -> float | None:
        """Return for how many seconds this failure opened the breaker; None if it did not."""
        with self._mutex:
            if ticket != self._period:
                return None
            if self.is_open:
                self._wait = min(2 * self._wait, MAX_WAIT)
                self._next_probe = self._clock() + self._wait
                self._is_probing = False
                return None
            self._num_failures += 1
            if self._num_failures < MAX_FAILURES:
                return None
            self._period += 1
            self._next_probe = self._clock() + self._wait
            return self._wait

    def abandon(self, ticket: int) -> None:
        """End a call that neither succeeded nor failed: its caller was interrupted. The next may probe."""
        with self._mutex:
            if ticket == self._period:
                self._is_probing = False
