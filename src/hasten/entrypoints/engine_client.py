"""How a caller reaches an engine that runs elsewhere. All that crosses is plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hasten.core.output import Delta, Rejection
from hasten.core.request import Request


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine's loop has ended and will answer nobody; ``error`` is empty after an orderly end."""

    error: str


Event = Delta | Rejection | EngineDied


class EngineClient(Protocol):
    def start(self, on_events: Callable[[list[Event]], None]) -> None:
        """``on_events`` is called from the transport's own thread, in order."""
        ...

    def add(self, request: Request) -> None:
        """Answered by deltas, or by a ``Rejection``. Returns at once."""
        ...

    def abort(self, request_id: str) -> None:
        """Ends the request before the next step; nothing happens if it has ended. Returns at once."""
        ...

    def close(self) -> None:
        """Aborts everything and ends the engine. Idempotent."""
        ...
