"""Several engine requests of one API request: they run together, and end together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from hasten.core.output import Delta

T = TypeVar("T")


async def gather_all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results, in order. If one fails, the others are cancelled and its exception is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def merge(streams: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield the deltas of all streams as they come, each with the number of its stream.

    If one fails, its exception is raised; the others are closed, as they are when this generator is.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    found: asyncio.Queue[tuple[int, Delta] | None] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async with aclosing(streams[number]) as deltas:
                async for delta in deltas:
                    found.put_nowait((number, delta))
        finally:
            found.put_nowait(None)

    tasks = [asyncio.ensure_future(pump(number)) for number in range(len(streams))]
    try:
        num_open = len(tasks)
        while num_open:
            item = await found.get()
            if item is not None:
                yield item
                continue
            num_open -= 1
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
