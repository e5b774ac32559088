"""``FairLock``: a lock that threads get in the order in which they asked for it.

A thread that steps an engine in a loop releases a ``threading.Lock`` and takes it again before any other thread wakes up.
"""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    def __init__(self) -> None:
        self._mutex = threading.Lock()  # held for a few instructions
        self._is_held = False
        self._waiting: deque[threading.Lock] = deque()  # each is locked until its thread's turn

    def acquire(self) -> None:
        """Wait for all threads that asked before."""
        with self._mutex:
            if not self._is_held:
                self._is_held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def try_acquire(self) -> bool:
        """Take the lock if it is free. Never waits, so a finaliser may call it at any point."""
        if not self._mutex.acquire(blocking=False):
            return False
        is_free = not self._is_held
        self._is_held = True
        self._mutex.release()
        return is_free

    def release(self) -> None:
        with self._mutex:
            if self._waiting:  # the lock passes on and stays held
                self._waiting.popleft().release()
            else:
                self._is_held = False
