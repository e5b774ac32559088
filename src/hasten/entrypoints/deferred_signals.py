"""``DeferredSignals``: Ctrl-C and other signals wait, so that no step is cut short."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

Handler = Callable[[int, FrameType | None], object]
# Signals for which programs install handlers that raise: Ctrl-C, the end of a service, a time limit.
DEFERRED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class DeferredSignals:
    """A context in which the handlers of these signals wait.

    ``check`` and the end of the context call the handlers that were there before; that of Ctrl-C usually raises
    ``KeyboardInterrupt``. Python handles signals in the main thread, so the context does nothing in any other one.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}  # that were there before
        self._pending: list[int] = []

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in DEFERRED:
                    handler = signal.getsignal(number)
                    if callable(handler):  # else the signal is ignored, or ends the process
                        self._handlers[number] = handler
                        signal.signal(number, self._defer)
            except BaseException:  # from the handler of a signal that does not wait yet
                self._restore()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
        self.check()

    @property
    def is_pending(self) -> bool:
        """Whether a signal waits, for work that ends by itself in a clean state."""
        return bool(self._pending)

    def check(self) -> None:
        """Call the handlers of signals that have come meanwhile.

        It is called where an exception leaves a clean state.
        """
        while self._pending:
            number = self._pending.pop(0)
            self._handlers[number](number, inspect.currentframe())

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _defer(self, number: int, frame: FrameType | None) -> None:
        if number not in self._pending:
            self._pending.append(number)
