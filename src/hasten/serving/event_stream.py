"""Answers as server-sent events, and answers that end when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

T = TypeVar("T")
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def event_response(events: AsyncGenerator[bytes, None], context: AsyncExitStack) -> Response:
    """Return a response that sends events; ``context`` closes after the last, or when the client leaves.

    The first event is awaited, so an exception before it is raised here and becomes a status. Later ones are for ``events`` to
    write. On an exception ``context`` is left to the caller.
    """
    first = await anext(events)
    held = context.pop_all()

    async def send() -> AsyncIterator[bytes]:
        async with held:
            try:
                yield first
                async for event in events:
                    yield event
            finally:
                await events.aclose()

    return StreamingResponse(send(), media_type="text/event-stream", headers=HEADERS)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns; cancel it if the client leaves. The body of the request has been read.

    Raises ``asyncio.CancelledError`` if the client has left.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        for each in (task, watch):
            each.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
