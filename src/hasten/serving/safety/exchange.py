"""``Exchange``: one request and its answer on their way between the server and the application."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope, Send

from hasten.serving.safety.body_limits import BodyReader

STATE_KEY = "hasten_exchange"  # in ``scope["state"]``


class Exchange:
    """Counts the body, watches the client, and ends the application's work when the client leaves."""

    def __init__(self, body: BodyReader, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        """``headers``: further ones of the answer."""
        self._body, self._receive, self._send, self._headers = body, receive, send, headers
        self._deadline: asyncio.Timeout | None = None
        self._watch: asyncio.Future[None] | None = None
        self.has_left = False  # the client
        self.failure: Exception | None = None  # of an answer that had begun
        self.has_started = False  # the answer
        self.is_complete = False  # the answer
        self.is_event_stream = False

    def open(self, deadline: asyncio.Timeout) -> None:
        """Begin; ``deadline`` is in force around the application's work."""
        self._deadline = deadline

    def close(self) -> None:
        """End the watch, and count the body no longer. ``deadline`` is no longer touched."""
        self._deadline = None
        self._body.close()
        if self._watch is not None:
            self._watch.cancel()

    async def receive(self) -> Message:
        """Return the next part of the body, and then ``http.disconnect`` once the client leaves."""
        if self._watch is None:
            message = await self._body.read()
            if self._body.is_complete:
                self._watch = asyncio.ensure_future(disconnected(self._receive))
                self._watch.add_done_callback(self._on_departure)
            return message
        await asyncio.wait([self._watch])
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self.has_started:
            message = self._start(message)
        await self._send(message)
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    def _start(self, message: Message) -> Message:
        self.has_started = True
        headers = [*message.get("headers", []), *self._headers]
        self.is_event_stream = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
        if self._body.is_pending:  # what remains of it is not read, and must not be taken for the next request
            headers.append((b"connection", b"close"))
        return {**message, "headers": headers}

    def _on_departure(self, watch: asyncio.Future[None]) -> None:
        if self._deadline is None or watch.cancelled() or watch.exception() is not None or self.is_complete:
            return
        if not self._deadline.expired():
            self.has_left = True
            self._deadline.reschedule(0)  # at once


def has_started(scope: Scope) -> bool:
    """Return whether the answer to a request has begun; False where no ``Exchange`` carries it."""
    found = exchange_of(scope)
    return found is not None and found.has_started


def exchange_of(scope: Scope) -> Exchange | None:
    """Return the exchange that carries a request; None if the application is not protected."""
    found = scope.get("state", {}).get(STATE_KEY)
    return found if isinstance(found, Exchange) else None


async def disconnected(receive: Receive) -> None:
    """Return when the client has left. The body of the request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
