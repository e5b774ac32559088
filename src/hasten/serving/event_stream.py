"""Answers as server-sent events, and answers that end when the client leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hasten.serving.client_watch import while_connected
from hasten.serving.safety.exchange import exchange_of

T = TypeVar("T")
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "content-type": "text/event-stream; charset=utf-8"}


async def event_response(events: AsyncGenerator[bytes, None], context: AsyncExitStack) -> Response:
    """Return a response that sends events; ``context`` closes after the last, or when the client leaves.

    The first event is awaited, so an exception before it is raised here and becomes a status. ``events`` writes later ones; what
    it raises ends the stream with the error event of the path's surface. On an exception here ``context`` is left to the caller.
    """
    first = await anext(events, b"")
    return EventStream(first, events, context.pop_all())


class EventStream(Response):
    """A stream of events. All of it runs in the task of the request."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None], context: AsyncExitStack) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._first, self._events, self._context = first, events, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._context:
            try:
                async with while_connected(scope, receive):
                    await self._send(send)
            except ClientDisconnect:
                pass
            except Exception as error:
                exchange = exchange_of(scope)
                if exchange is None:
                    raise
                exchange.failure = error  # not raised: Starlette takes that for a bug once an answer has begun
            finally:
                await self._events.aclose()  # a request that has not ended is aborted

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self._first:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns; cancel it if the client leaves. The body of the request has been read.

    Raises ``ClientDisconnect`` then; under ``protect`` it is the request that is cancelled.
    """
    try:
        async with while_connected(request.scope, request.receive):
            return await work
    finally:
        work.close()  # it may not have begun
