"""``while_connected``: work that ends when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from hasten.serving.safety.exchange import disconnected, exchange_of


@asynccontextmanager
async def while_connected(scope: Scope, receive: Receive) -> AsyncIterator[None]:
    """Cancel what runs in the context when the client leaves, and raise ``ClientDisconnect`` then.

    The body of the request has been read. Under ``protect`` the exchange cancels the request, so there is nothing to watch here:
    two cancellations could cut what is cleaned up after the first.
    """
    if exchange_of(scope) is not None:
        yield
        return
    is_open = True
    try:
        async with asyncio.timeout(None) as departure:

            def leave(watch: asyncio.Future[None]) -> None:
                if is_open:
                    departure.reschedule(0)  # at once

            watch = asyncio.ensure_future(disconnected(receive))
            watch.add_done_callback(leave)
            try:
                yield
            finally:
                is_open = False
                watch.cancel()
    except TimeoutError:
        if departure.expired():
            raise ClientDisconnect from None
        raise
