"""``AsyncLLM``: the engine in a thread of its own, and outputs as async iterators."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import HastenError, InvalidRequest, PromptTooLong
from hasten.core.output import Delta, RequestOutput, RequestRejected
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.engine_client import EngineClient, EngineDied, Event
from hasten.entrypoints.input_processor import Prompt
from hasten.entrypoints.wiring.build_engine import build_engine


class AsyncLLM:
    """One model for any number of tasks of one event loop.

    ``options`` are those of ``LLM``. Close it, or use ``async with``. Leaving the loop over a stream cancels its request.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._loaded = build_engine(str(model), EngineOptions.from_dict(options))
        self._client = EngineClient(self._loaded.engine)
        self._ids = itertools.count()
        self._inboxes: dict[str, asyncio.Queue[Event]] = {}  # per open request
        self._loop: asyncio.AbstractEventLoop | None = None  # of the first request
        self._died: EngineDied | None = None

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the engine; requests that still run end with an error."""
        self._died = self._died or EngineDied("")
        await asyncio.to_thread(self._client.close)

    def default_sampling_params(self) -> SamplingParams:
        """See ``LLM.default_sampling_params``."""
        return self._loaded.input_processor.defaults

    def describe(self) -> dict[str, Any]:
        """See ``LLM.describe``."""
        return dict(self._loaded.description)

    async def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[Delta]:
        """Yield deltas as they come; the last one has the complete output. Raises ``InvalidRequest``."""
        request = self._loaded.input_processor.request(
            str(next(self._ids)), prompt, sampling_params, arrival=time.monotonic(), priority=priority, cache_salt=cache_salt
        )
        inbox = self._send(request)
        delta: Delta | None = None
        try:
            while delta is None or delta.output is None:
                event = await inbox.get()
                if isinstance(event, RequestRejected):
                    error = PromptTooLong if event.kind == "PromptTooLong" else InvalidRequest
                    raise error(event.what, got=event.got, allowed=event.allowed, remedy=event.remedy)
                if isinstance(event, EngineDied):
                    raise HastenError("the engine has ended", got=event.error or "it was closed", remedy="Make a new AsyncLLM")
                delta = event
                yield delta
        finally:
            del self._inboxes[request.request_id]
            if delta is None or delta.output is None:
                self._client.abort(request.request_id)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> RequestOutput:
        """Return the output of one prompt. Cancelling the task ends the request."""
        async for delta in self.stream(prompt, sampling_params, priority=priority, cache_salt=cache_salt):
            if delta.output is not None:
                return dataclasses.replace(delta.output, prompt=prompt if isinstance(prompt, str) else None)
        raise AssertionError("a stream ended without its output")

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        **template_kwargs: Any,
    ) -> AsyncIterator[Delta]:
        """``stream`` a conversation, rendered by the checkpoint's chat template."""
        prompt = self._loaded.input_processor.chat_prompt(messages, tools, template_kwargs)
        return self.stream(prompt, sampling_params, priority=priority, cache_salt=cache_salt)

    def _send(self, request: Request) -> asyncio.Queue[Event]:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._client.start(self._receive)
        if loop is not self._loop:
            raise HastenError("an AsyncLLM serves one event loop", remedy="Make one AsyncLLM per event loop")
        inbox = self._inboxes.setdefault(request.request_id, asyncio.Queue())
        if self._died is not None:
            inbox.put_nowait(self._died)
        else:
            self._client.add(request)
        return inbox

    def _receive(self, events: list[Event]) -> None:
        """Pass events on to the event loop. The engine's thread calls it."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed, and no task waits
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, EngineDied):
                self._died = event
                for inbox in self._inboxes.values():
                    inbox.put_nowait(event)
            elif event.request_id in self._inboxes:
                self._inboxes[event.request_id].put_nowait(event)
