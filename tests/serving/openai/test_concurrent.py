"""Several engine requests of one API request: order, failures, and who is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from hasten.core.output import Delta
from hasten.serving.openai.concurrent import gather_all, merge


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


class Streams:
    """Streams that wait for a permit before each delta, and say that they were closed."""

    def __init__(self, number: int) -> None:
        self.permits = [asyncio.Semaphore(0) for _ in range(number)]
        self.closed: list[int] = []

    async def stream(self, number: int, count: int, fault: Exception | None = None) -> AsyncGenerator[Delta, None]:
        try:
            for place in range(count):
                await self.permits[number].acquire()
                yield Delta(request_id=str(number), index=0, text=str(place), token_ids=())
            if fault is not None:
                raise fault
        finally:
            self.closed.append(number)


def test_deltas_come_in_the_order_of_the_streams_steps() -> None:
    async def check() -> None:
        streams = Streams(2)
        merged = merge([streams.stream(0, 2), streams.stream(1, 1)])
        for number, text in ((1, "0"), (0, "0"), (0, "1")):
            streams.permits[number].release()
            found = await anext(merged)
            assert (found[0], found[1].text) == (number, text)
        assert [item async for item in merged] == [] and sorted(streams.closed) == [0, 1]

    run(check())


@pytest.mark.parametrize("number", [1, 2])
def test_a_failure_ends_all_streams(number: int) -> None:
    async def check() -> None:
        streams = Streams(number)
        works = [streams.stream(0, 1, fault=ValueError("broken"))] + [streams.stream(each, 5) for each in range(1, number)]
        streams.permits[0].release()
        merged = merge(works)
        assert (await anext(merged))[0] == 0
        with pytest.raises(ValueError, match="broken"):
            await anext(merged)
        assert sorted(streams.closed) == list(range(number))

    run(check())


@pytest.mark.parametrize("number", [1, 3])
def test_closing_closes_all_streams(number: int) -> None:
    async def check() -> None:
        streams = Streams(number)
        for permit in streams.permits:
            permit.release()
        async with aclosing(merge([streams.stream(each, 5) for each in range(number)])) as merged:
            await anext(merged)
        assert sorted(streams.closed) == list(range(number))

    run(check())


def test_results_are_in_order_and_a_failure_cancels_the_others() -> None:
    async def check() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def slow() -> int:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return 0

        async def fail() -> int:
            await started.wait()
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await gather_all([slow(), fail()])
        await asyncio.wait_for(cancelled.wait(), 10)

        async def give(value: int, before: asyncio.Event, after: asyncio.Event) -> int:
            await before.wait()
            after.set()
            return value

        first, second = asyncio.Event(), asyncio.Event()
        first.set()
        assert await gather_all([give(1, second, asyncio.Event()), give(2, first, second)]) == [1, 2]

    run(check())
