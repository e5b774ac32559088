"""``uvicorn_settings``: the limits of connections.

They hold for heads, before there is a request, and for clients that do not read. httptools has none: a client may send headers,
trailers or the extensions of chunks without end, and at any pace.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hasten.serving.server_options import ServerOptions


def uvicorn_settings(options: ServerOptions) -> dict[str, Any]:
    """Return the settings of ``uvicorn.Config`` that belong to safety.

    They choose the protocol, and trust no header of a proxy. The access log is hasten's own, because uvicorn's has query strings.
    """
    return {
        "http": guarded_protocol(options),
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
    }


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the limits of ``options``.

    A head has to be complete within ``header_timeout``. No more than ``max_header_bytes`` may come without a complete head, a
    part of a body or the end of a request. A client that leaves its buffer full for ``stall_timeout`` is disconnected, which ends
    its request.
    """

    options: ServerOptions
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _num_idle_bytes = 0
    _has_progress = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_progress = False
        super().data_received(data)
        self._num_idle_bytes = 0 if self._has_progress else self._num_idle_bytes + len(data)
        if self._num_idle_bytes > self.options.max_header_bytes and not self.transport.is_closing():
            self._end(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._has_progress = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progress = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.options.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client never reads the rest of the last answer."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.options.stall_timeout, self.transport.abort)

    def _end_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.options.header_timeout, self._end, b"408 Request Timeout")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end(self, status: bytes) -> None:
        """Answer in the plainest form, unless an answer is on its way, and close the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


def guarded_protocol(options: ServerOptions) -> type[GuardedProtocol]:
    """Return the protocol with these limits; uvicorn makes one object per connection."""
    return type("GuardedProtocol", (GuardedProtocol,), {"options": options})
