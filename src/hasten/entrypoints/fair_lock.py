"""``FairLock``: a lock that threads get in the order in which they asked for it.

A thread that steps an engine in a loop releases a ``threading.Lock`` and takes it again before any other thread wakes up.
"""

from __future__ import annotations

import threading
from collections import deque

from hasten.core.errors import HastenError


class FairLock:
    def __init__(self) -> None:
        self._mutex = threading.Lock()  # held for a few instructions
        self._owner: int | None = None  # the thread that holds the lock
        self._waiting: deque[tuple[int, threading.Lock]] = deque()  # threads; each lock is locked until the thread's turn
        self._is_halted = False

    def acquire(self) -> None:
        """Wait for all threads that asked before.

        Raises ``HastenError`` in a thread that holds the lock, as in a signal handler, and in the main thread after ``halt``.
        """
        thread = threading.get_ident()
        if self._owner == thread:
            raise HastenError("this LLM is in use by the same thread", remedy="Do not call it from a signal handler")
        if self._is_halted and threading.current_thread() is threading.main_thread():
            raise HastenError("this LLM cannot be used while the interpreter ends")
        with self._mutex:
            if self._owner is None:
                self._owner = thread
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append((thread, turn))
        try:
            turn.acquire()
        except BaseException:  # from a signal handler
            with self._mutex:
                if self._owner == thread:
                    self._pass_on()
                else:
                    self._waiting.remove((thread, turn))
            raise

    def try_acquire(self) -> bool:
        """Take the lock if it is free. Never waits, so a finaliser may call it at any point."""
        if not self._mutex.acquire(blocking=False):
            return False
        is_free = self._owner is None
        if is_free:
            self._owner = threading.get_ident()
        self._mutex.release()
        return is_free

    def release(self) -> None:
        with self._mutex:
            self._pass_on()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds the lock."""
        return self._owner == threading.get_ident()

    def halt(self) -> None:
        """Take the lock and never give it back: the interpreter is about to free what daemon threads use.

        A lock that an ended thread has kept is nothing to wait for.
        """
        owner = self._owner
        is_kept = owner is not None and owner not in {thread.ident for thread in threading.enumerate()}
        if not (self._is_halted or self.is_mine or is_kept):
            self.acquire()
        self._is_halted = True

    def _pass_on(self) -> None:
        """Give the lock to the thread that has waited longest. The mutex is held."""
        if not self._waiting:
            self._owner = None
            return
        self._owner, turn = self._waiting.popleft()
        turn.release()
