"""``ModelPool``: the models of a server, loaded on demand, watched, restarted, and unloaded when idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from hasten.core.errors import HastenError, InvalidOption
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.api_error import ApiError
from hasten.serving.models.base import ModelEntry
from hasten.serving.models.clock import Clock, SystemClock
from hasten.serving.models.engine_loader import load_engine
from hasten.serving.models.health import EngineStatus, Health
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.models.model_slot import ModelSlot, SlotState, draining
from hasten.serving.models.served_model import ServedModel
from hasten.serving.models.single import unknown_model
from hasten.serving.server_options import ServerOptions


class ModelPool:
    """A ``ModelRegistry``. All methods belong to one event loop.

    One model loads at a time, because the size of its KV cache is a share of the memory that is free.
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        options: ServerOptions,
        *,
        load: Callable[[ModelConfig], Awaitable[AsyncLLM]] = load_engine,
        clock: Clock | None = None,
        on_too_many_deaths: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """``configs``: the default model first. Raises ``InvalidOption`` for none, or two of one name."""
        names = [config.name for config in configs]
        if not names or len(set(names)) < len(names):
            raise InvalidOption("a server has one or more models, each with a name of its own", got=", ".join(names) or "none")
        self._options, self._load, self._clock = options, load, clock or SystemClock()
        self._on_too_many_deaths = on_too_many_deaths
        slots = [ModelSlot(config, options, self._clock, self) for config in configs]
        self._slots = {slot.config.name: slot for slot in slots}
        self._default = slots[0]
        self._loading = asyncio.Lock()
        self._changed = asyncio.Event()  # a request has ended, or a slot has changed, since it was cleared
        self._is_draining = False

    async def load_default(self) -> ServedModel:
        """Load the first model. Raises ``HastenError`` if that fails."""
        try:
            return await self._default.ready(None)
        except ApiError as error:
            failure = self._default.error
            raise (failure if failure is not None else HastenError(error.message)) from None

    def entries(self) -> Sequence[ModelEntry]:
        return [
            ModelEntry(slot.config.name, slot.config.path, slot.created, slot.served is not None, slot.max_model_len)
            for slot in self._slots.values()
        ]

    def loaded(self) -> Sequence[ServedModel]:
        return [slot.served for slot in self._slots.values() if slot.served is not None]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        slot = self._default if name is None else self._slots.get(name)
        if slot is None:
            raise unknown_model(name, list(self._slots))
        if self._is_draining:
            raise draining()
        slot.num_users += 1
        try:
            yield await slot.ready(self._options.request_timeout)
        finally:
            self._release(slot)

    def health(self) -> Health:
        slots, now = list(self._slots.values()), self._clock.time()
        silent = [now - slot.unanswered_since for slot in slots if slot.unanswered_since is not None]
        num_restarting = sum(slot.is_restarting or slot.has_died for slot in slots)
        seconds = max(silent, default=0.0)
        if silent:
            status, reason = EngineStatus.NOT_ANSWERING, f"{len(silent)} of {len(slots)} engines: no answer for {seconds:.0f} s"
        elif num_restarting:
            status, reason = EngineStatus.RESTARTING, f"{num_restarting} of {len(slots)} engines: has died and restarts"
        elif self._default.max_model_len is None:
            status, reason = EngineStatus.LOADING, "the first model loads"
        else:
            status, reason = EngineStatus.READY, ""
        return Health(status, reason, seconds, self._is_draining)

    @property
    def num_requests(self) -> int:
        """The number of requests that use a model or wait for it."""
        return sum(slot.num_users for slot in self._slots.values())

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded."""
        return any(slot.state is SlotState.LOADING for slot in self._slots.values())

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._is_draining = True

    async def wait_idle(self, seconds: float) -> bool:
        """Return whether all requests end within a time."""
        try:
            async with asyncio.timeout(seconds):
                while self.num_requests:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End all engines; requests that still run end with an error."""
        self._is_draining = True
        await asyncio.gather(*(slot.close() for slot in self._slots.values()))

    async def load(self, slot: ModelSlot) -> AsyncLLM | None:
        """Load one model's engine, once it is its turn and there is room.

        None: no request waits for room any more.
        """
        async with self._loading:
            limit = self._options.max_loaded_models
            while limit is not None and sum(other.has_engine for other in self._slots.values()) >= limit:
                idle = [other for other in self._slots.values() if other.is_idle]
                if not slot.num_waiting:
                    return None
                if idle:
                    await min(idle, key=lambda other: other.last_used).stop()
                else:
                    self._changed.clear()
                    await self._changed.wait()
            return await self._load(slot.config)

    def on_change(self) -> None:
        self._changed.set()

    def on_too_many_deaths(self, reason: str) -> None:
        self._on_too_many_deaths(reason)

    def _release(self, slot: ModelSlot) -> None:
        slot.num_users -= 1
        slot.last_used = self._clock.time()
        self._changed.set()
