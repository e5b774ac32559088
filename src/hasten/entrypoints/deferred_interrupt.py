"""``DeferredInterrupt``: Ctrl-C waits for the end of a step, so that no step is cut short."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class DeferredInterrupt:
    """A context in which SIGINT only sets a flag.

    ``check`` and the end of the context call the handler that was there before, which usually raises ``KeyboardInterrupt``. Python
    handles signals in the main thread, so the context does nothing in any other one.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], object] | None = None  # the handler that was there before
        self._pending = False

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):  # else the signal is ignored, or ends the process
                self._handler = handler
                signal.signal(signal.SIGINT, self._defer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self.check()

    def check(self) -> None:
        """Deliver a SIGINT that has come meanwhile. Call it where an exception leaves a clean state."""
        if self._pending and self._handler is not None:
            self._pending = False
            self._handler(signal.SIGINT, inspect.currentframe())

    def _defer(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
