"""``EventRouter``: passes the engine's events on to the event loops whose tasks wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from hasten.entrypoints.engine_client import EngineDied, Event


@dataclass(frozen=True, slots=True, eq=False)
class EventInbox:
    """The events of one request, for a task of ``loop``."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)


class EventRouter:
    """Tasks open and close inboxes in their loops; the engine's thread delivers."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._inboxes: dict[str, EventInbox] = {}  # per open request
        self._died: EngineDied | None = None

    def open(self, request_id: str) -> EventInbox:
        """Return the inbox of a request of the running loop. If the engine has ended, it says so at once."""
        inbox = EventInbox(asyncio.get_running_loop())
        with self._mutex:
            if self._died is not None:
                inbox.events.put_nowait(self._died)
            self._inboxes[request_id] = inbox
        return inbox

    def close(self, request_id: str) -> None:
        with self._mutex:
            self._inboxes.pop(request_id, None)

    @property
    def has_ended(self) -> bool:
        """Whether the engine has ended."""
        return self._died is not None

    @property
    def open_requests(self) -> list[str]:
        """Return the ids of the requests for which tasks wait."""
        with self._mutex:
            return list(self._inboxes)

    def end(self, died: EngineDied) -> None:
        """Tell all tasks, and those that come later, that the engine has ended."""
        self.deliver([died], lambda request_id: None)

    def deliver(self, events: list[Event], abort: Callable[[str], None]) -> None:
        """Pass events on, in order. ``abort`` is called for requests whose loop is closed."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[str, EventInbox, Event]]] = {}
        with self._mutex:
            for event in events:
                if isinstance(event, EngineDied):
                    self._died = self._died or event
                    receivers = list(self._inboxes.items())
                else:
                    receiver = self._inboxes.get(event.request_id)
                    receivers = [] if receiver is None else [(event.request_id, receiver)]
                for request_id, inbox in receivers:
                    by_loop.setdefault(inbox.loop, []).append((request_id, inbox, event))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, items)
            except RuntimeError:  # the loop is closed, so no task waits
                for request_id in {request_id: None for request_id, _, _ in items}:
                    self.close(request_id)
                    abort(request_id)


def _put_all(items: list[tuple[str, EventInbox, Event]]) -> None:
    for _, inbox, event in items:
        inbox.events.put_nowait(event)
