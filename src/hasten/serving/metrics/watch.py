"""``watch``: an application whose requests are counted and logged."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hasten.serving.caller import STATE_KEY as CALLER_KEY
from hasten.serving.caller import Caller
from hasten.serving.metrics.access_log import MAX_CLIENT_ID, AccessLog
from hasten.serving.metrics.server_metrics import METHODS, ServerMetrics
from hasten.serving.metrics.usage import usage_of
from hasten.serving.server_state import ServerState

CLIENT_LEFT = 499  # the status of a request whose client left before any answer
REQUEST_ID_HEADERS = (b"x-request-id", b"request-id")


def watch(
    app: ASGIApp, state: ServerState, *, log: AccessLog | None = None, clock: Callable[[], float] = time.perf_counter
) -> ASGIApp:
    """Return an application that counts the requests of ``app`` in ``state.metrics``, and logs them.

    It belongs outside of all checks, so that refused requests count too. Each answer gets an ``x-request-id`` of the server's own
    if it has none. ``log``: None for one on standard output.
    """
    if log is None and state.options.access_log != "off":
        log = AccessLog()
    return WatchedApp(app, state.metrics, log, clock)


class WatchedApp:
    def __init__(self, app: ASGIApp, metrics: ServerMetrics, log: AccessLog | None, clock: Callable[[], float]) -> None:
        self._app, self._metrics, self._log, self._clock = app, metrics, log, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # what inner applications note must be found here
        exchange = _Exchange(receive, send)
        begin = self._clock()
        self._metrics.num_in_flight += 1
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._metrics.num_in_flight -= 1
            self._end(scope, exchange, self._clock() - begin)

    def _end(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        metrics, route = self._metrics, getattr(scope.get("route"), "path", None)
        status = exchange.status or (CLIENT_LEFT if exchange.is_disconnected else 500)
        metrics.end(route, scope["method"], status, seconds)
        metrics.num_disconnects += exchange.is_disconnected
        metrics.received_bytes += exchange.num_received
        metrics.sent_bytes += exchange.num_sent
        if self._log is not None:
            self._log.add(_entry(scope, exchange, route, status, seconds))


class _Exchange:
    """Counts what passes between the server and the application."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status: int | None = None  # None: no answer has begun
        self.request_id = ""
        self.num_received = self.num_sent = 0  # bytes of the bodies
        self.is_complete = False  # the answer
        self.is_disconnected = False  # the client left before the answer was complete

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.num_received += len(message.get("body", b""))
        elif message["type"] == "http.disconnect" and not self.is_complete:
            self.is_disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.num_sent += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self.status, message = message["status"], self._with_request_id(message)
        await self._send(message)

    def _with_request_id(self, message: Message) -> Message:
        """Return the start of an answer with a request id, and remember the id."""
        headers = list(message.get("headers", ()))
        for name, value in headers:
            if name.lower() in REQUEST_ID_HEADERS:
                self.request_id = value.decode("latin-1")
                return message
        self.request_id = f"req_{secrets.token_hex(12)}"
        return {**message, "headers": [*headers, (b"x-request-id", self.request_id.encode())]}


def _entry(scope: Scope, exchange: _Exchange, route: str | None, status: int, seconds: float) -> dict[str, Any]:
    """Return the log entry of a request.

    A raw path may have a secret in it, so the entry has the route's template.
    """
    usage, caller = usage_of(scope), scope["state"].get(CALLER_KEY)
    client_id = Headers(scope=scope).get("x-request-id")
    has_usage = usage.num_outputs > 0
    return {
        "request_id": exchange.request_id or f"req_{secrets.token_hex(12)}",
        "client_request_id": client_id and client_id[:MAX_CLIENT_ID],
        "method": scope["method"] if scope["method"] in METHODS else "OTHER",
        "route": route,
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
        "bytes_in": exchange.num_received,
        "bytes_out": exchange.num_sent,
        "model": usage.model,
        "tenant": caller.tenant[:8] or None if isinstance(caller, Caller) else None,
        "prompt_tokens": usage.prompt_tokens if has_usage else None,
        "cached_tokens": usage.cached_tokens if has_usage else None,
        "output_tokens": usage.output_tokens if has_usage else None,
        "ttft_ms": None if usage.ttft is None else round(usage.ttft * 1000, 3),
        "disconnected": exchange.is_disconnected,
        "complete": exchange.is_complete,
    }
