"""Engines and a clock that a test commands; nothing runs by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from hasten.core.errors import HastenError
from hasten.serving.models.model_config import ModelConfig


class FakeClock:
    """Sleepers wake only in ``advance``, which returns once all tasks wait again."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        sleeper = (self.now + seconds, asyncio.Event())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers.remove(sleeper)

    async def advance(self, seconds: float) -> None:
        """Pass the time from one sleeper to the next, as long as it lasts."""
        end = self.now + seconds
        await settle()
        while due := [time for time, _ in self._sleepers if time <= end]:
            self.now = max(self.now, min(due))
            for time, event in self._sleepers:
                if time <= self.now:
                    event.set()
            await settle()
        self.now = end


async def settle() -> None:
    """Let every task run until it waits for something that only the test brings about."""
    for _ in range(50):
        await asyncio.sleep(0)


class FakeLLM:
    """The part of ``AsyncLLM`` that a pool uses."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.is_dead = self.is_silent = self.is_closed = False
        self.num_pings = 0

    @property
    def max_model_len(self) -> int:
        return 512

    @property
    def has_ended(self) -> bool:
        return self.is_dead or self.is_closed

    async def stats(self) -> dict[str, Any]:
        self.num_pings += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.is_dead:
            raise HastenError("the engine has ended")
        return {}

    async def close(self) -> None:
        self.is_closed = True


class FakeLoader:
    """Loads ``FakeLLM``; ``gate`` holds loads back while it is not set, and ``error`` makes them fail."""

    def __init__(self) -> None:
        self.engines: list[FakeLLM] = []
        self.times: list[float] = []  # of each load
        self.num_running = self.max_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.clock: FakeClock | None = None

    async def __call__(self, config: ModelConfig) -> Any:
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            if self.clock is not None:
                self.times.append(self.clock.now)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            self.engines.append(FakeLLM(config))
            return self.engines[-1]
        finally:
            self.num_running -= 1

    def of(self, name: str) -> list[FakeLLM]:
        return [engine for engine in self.engines if engine.config.name == name]
