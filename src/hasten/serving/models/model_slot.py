"""``ModelSlot``: one configured model, and the task that loads, watches and unloads its engine.

::

    UNLOADED ──a request──► LOADING ──► READY ◄──────► NOT_ANSWERING
        ▲                   │     ▲       │ │                │
        └───── idle ────────│─────│───────┘ └──── dies ◄─────┘
                      fails ▼     │ after a delay ▼
                         FAILED   └───────── RESTARTING

A model that fails to load is tried again by the first request after a delay. An engine that died is restarted without a request.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable
from typing import Protocol

from hasten.core.errors import HastenError
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.models.clock import Clock
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.models.recent_failures import RecentFailures
from hasten.serving.models.served_model import ServedModel
from hasten.serving.server_options import ServerOptions

PING_INTERVAL, PING_TIMEOUT = 1.0, 5.0  # seconds
CLOSE_TIMEOUT = 12.0  # seconds; an engine's process that does not end is killed before
MAX_DEATHS = 5  # of an engine in ten minutes

log = logging.getLogger(__name__)


class SlotState(enum.Enum):
    UNLOADED = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()
    NOT_ANSWERING = enum.auto()  # requests still reach the engine: a long step looks the same
    RESTARTING = enum.auto()  # waits for the time of its restart
    FAILED = enum.auto()  # could not be loaded


class SlotOwner(Protocol):
    async def load(self, slot: ModelSlot) -> AsyncLLM | None:
        """Return the engine; None if nothing needs the model any more. Raises any exception if that fails."""

    def on_change(self) -> None:
        """Note that a slot has another state, another engine or none."""

    def on_too_many_deaths(self, reason: str) -> None:
        """Note that an engine is not restarted any more."""


class ModelSlot:
    """All methods belong to one event loop."""

    def __init__(self, config: ModelConfig, options: ServerOptions, clock: Clock, owner: SlotOwner) -> None:
        self.config, self.created = config, int(time.time())
        self.state = SlotState.UNLOADED
        self.served: ServedModel | None = None  # while requests can use it
        self.has_engine = False  # from its load until it is closed
        self.max_model_len: int | None = None
        self.num_users = 0  # requests that use it or wait for it
        self.num_waiting = 0  # the latter
        self.last_used = clock.time()
        self.unanswered_since: float | None = None
        self.is_restarting = False  # since a death, until it is loaded again
        self.error: Exception | None = None  # the last failure
        self._options, self._clock, self._owner = options, clock, owner
        self._load_failures, self._deaths = RecentFailures(clock), RecentFailures(clock)
        self._retry_at = 0.0
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # a new one after each change

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and unused."""
        return self.served is not None and self.num_users == 0

    @property
    def has_died(self) -> bool:
        """Whether its engine has ended by itself. The next ping restarts it."""
        return self.served is not None and self.served.llm.has_ended

    async def ready(self, seconds: float | None) -> ServedModel:
        """Return the model; load it first if it has to. Raises ``ApiError``, at the latest after ``seconds``."""
        name = self.config.name
        limit = self.config.max_requests(self._options.max_requests)
        if self.served is None and self.num_waiting >= limit:
            raise ApiError(ErrorKind.RATE_LIMIT, f"{limit} requests wait for {name!r} to load", code="queue_full", retry_after=1.0)
        self.num_waiting += 1
        try:
            async with asyncio.timeout(seconds):
                while self.served is None:
                    self._raise_failure()
                    self.start()
                    await self._changed.wait()
                return self.served
        except TimeoutError:
            message = f"the model {name!r} is not loaded after {seconds:g} seconds"
            raise ApiError(ErrorKind.UNAVAILABLE, message, code="model_loading", retry_after=1.0) from None
        finally:
            self.num_waiting -= 1

    def start(self) -> None:
        """Begin to load, unless that has begun."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"model {self.config.name}")
            self._task.add_done_callback(lambda _: self._tell())

    async def close(self) -> None:
        """Unload it for ever; requests that use it or wait for it end with an error."""
        self._is_closed = True
        self._tell()
        await self.stop()

    async def stop(self) -> None:
        """Unload it until the next request."""
        self.served = None
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                if not await self._run_engine():
                    return
            except asyncio.CancelledError:
                self.is_restarting = False
                self._become(SlotState.UNLOADED)
                raise
            except Exception as error:
                if not self._note_failure(error):
                    return
            await self._clock.sleep(max(0.0, self._retry_at - self._clock.time()))

    async def _run_engine(self) -> bool:
        """Load the engine and watch it until its end. Return whether it is to be restarted."""
        self._become(SlotState.LOADING)
        llm = await self._owner.load(self)
        if llm is None:
            self.is_restarting = False
            self._become(SlotState.UNLOADED)
            return False
        self.has_engine = True
        try:
            return await self._watch(llm)
        finally:
            self.served = self.unanswered_since = None
            if not self.is_restarting:
                self._become(SlotState.UNLOADED)
            await self._close(llm)
            self.has_engine = False
            self._tell()

    async def _watch(self, llm: AsyncLLM) -> bool:
        """Serve the model until it is idle or dies. Return whether it is to be restarted."""
        self.max_model_len = llm.max_model_len
        max_requests = self.config.max_requests(self._options.max_requests)
        self.served = ServedModel(self.config.name, self.config.path, llm, self.created, max_requests)
        self.last_used, self.is_restarting, self.error = self._clock.time(), False, None
        self._become(SlotState.READY)
        while True:
            await self._clock.sleep(PING_INTERVAL)
            keep_alive, now = self._options.keep_alive, self._clock.time()
            if keep_alive is not None and self.is_idle and now - self.last_used >= keep_alive:
                return False
            try:
                has_answered = await self._within(PING_TIMEOUT, llm.stats())
            except Exception as error:
                if llm.has_ended:
                    return self._note_death(error)
                log.exception("the statistics of %r cannot be read", self.config.name)
                has_answered = False
            self.unanswered_since = None if has_answered else self.unanswered_since or now
            self._become(SlotState.READY if has_answered else SlotState.NOT_ANSWERING)

    def _note_death(self, error: Exception) -> bool:
        """Return whether the engine is to be restarted: not after too many deaths."""
        self.is_restarting, self.error = True, error
        delay = self._deaths.add()
        self._retry_at = self._clock.time() + delay
        if self._deaths.count > MAX_DEATHS:
            self._become(SlotState.FAILED)
            times = f"{self._deaths.count} times in ten minutes"
            self._owner.on_too_many_deaths(f"the engine of {self.config.name!r} died {times}: {error}")
            return False
        log.warning("the engine of %r has died and restarts in %g s: %s", self.config.name, delay, error)
        self._become(SlotState.RESTARTING)
        return True

    def _note_failure(self, error: Exception) -> bool:
        """Note that the model cannot be loaded. Return whether that is tried again without a request."""
        if self.is_restarting:
            return self._note_death(error)
        self.error = error
        self._retry_at = self._clock.time() + self._load_failures.add()
        if self.num_users:  # otherwise the caller of ``ModelPool.load_default`` gets it
            trace = None if isinstance(error, HastenError) else error
            log.error("the model %r cannot be loaded: %s", self.config.name, error, exc_info=trace)
        self._become(SlotState.FAILED)
        return False

    def _raise_failure(self) -> None:
        """Raise the last failure while nothing is tried. Raises ``ApiError``."""
        if self._is_closed:
            raise draining()
        delay = max(0.0, self._retry_at - self._clock.time())
        if self.state is SlotState.RESTARTING:
            what = "has ended and is restarted"
        elif self.state is SlotState.FAILED and delay:
            what = "cannot be loaded; the server's log says why"  # an error names files of the server
        else:
            return
        message = f"the model {self.config.name!r} {what}"
        raise ApiError(ErrorKind.UNAVAILABLE, message, code="engine_unavailable", retry_after=delay)

    async def _close(self, llm: AsyncLLM) -> None:
        try:
            if not await self._within(CLOSE_TIMEOUT, llm.close()):
                log.error("the engine of %r does not end", self.config.name)
        except Exception:
            log.exception("the engine of %r failed at its end", self.config.name)

    async def _within(self, seconds: float, work: Awaitable[object]) -> bool:
        """Return whether ``work`` ends in that time; cancel it if not. Raises its exception."""
        task, alarm = asyncio.ensure_future(work), asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({task, alarm}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            await task
            return True
        finally:
            task.cancel()
            alarm.cancel()

    def _become(self, state: SlotState) -> None:
        if state is not self.state:
            self.state = state
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._owner.on_change()


def draining() -> ApiError:
    message = "the server is about to end and takes no more requests"
    return ApiError(ErrorKind.UNAVAILABLE, message, code="draining", retry_after=1.0)
