"""``EngineClient``: how a caller reaches an engine, in a thread or in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from hasten.core.errors import HastenError
from hasten.core.output import Delta, RequestRejected
from hasten.core.request import Request
from hasten.entrypoints.input_processor import InputProcessor
from hasten.entrypoints.model_info import ModelInfo


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine has ended and gives no more deltas. ``error`` is empty after ``EngineClient.close``."""

    error: str

    def as_exception(self) -> HastenError:
        return HastenError("the engine has ended", got=self.error or "it was closed", remedy="Make a new AsyncLLM")


Event = Delta | RequestRejected | EngineDied
# Called in a thread of the client, with events in order and with the client's ``abort``.
OnEvents = Callable[[list[Event], Callable[[str], None]], None]


@dataclass(frozen=True, slots=True, eq=False)
class PendingCall:
    """A call of ``hasten.entrypoints.engine_calls`` whose result is to come."""

    result: Future[Any]
    cancel: Callable[[], None]  # ends it soon, if it still runs: the result is then an exception


class EngineClient(Protocol):
    """Every method may be called from any thread, and returns at once. What crosses is plain data."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def input_processor(self) -> InputProcessor: ...

    @property
    def pid(self) -> int:
        """The id of the process in which the engine runs."""

    def add(self, request: Request) -> None:
        """Add a request. Its deltas follow as events, or one ``RequestRejected``."""

    def abort(self, request_id: str) -> None:
        """End a request before the next step. Does nothing if it has ended."""

    def call(self, name: str, **arguments: Any) -> PendingCall:
        """Call one of ``engine_calls.CALLS``."""

    def close(self) -> None:
        """End the engine, and wait for it. Requests that run get no more deltas. Idempotent."""
