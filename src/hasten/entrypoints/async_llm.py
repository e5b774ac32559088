"""``AsyncLLM``: the engine in a thread of its own, and outputs as async iterators."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from hasten.caching.stored_result import StoredResult
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidRequest, PromptTooLong
from hasten.core.kv_file import KvFile
from hasten.core.output import Delta, RequestOutput, RequestRejected
from hasten.core.request import PrefixPin, Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.engine.engine import Engine
from hasten.entrypoints.chat_answers import ChatAnswers, DeltaReader, ToolChoice
from hasten.entrypoints.engine_client import EngineClient, EngineDied
from hasten.entrypoints.event_router import EventRouter
from hasten.entrypoints.input_processor import Prompt, check_salt
from hasten.entrypoints.kv_files import KvFiles
from hasten.entrypoints.statistics import engine_statistics
from hasten.entrypoints.wiring.build_engine import build_engine

INPUT_THREADS = 2  # that tokenise long prompts and render conversations beside the event loop
GRAMMAR_THREADS = 32  # that wait for grammars to be vetted, one after the other; others would wait for those of a stranger
LOOKUP_THREADS = 32  # that wait for a result cache in a file or a server; else a slow one would delay requests in turn
MAX_INLINE = 2_000  # characters or token ids of a prompt that is tokenised in the event loop, in less than a millisecond

T = TypeVar("T")


class AsyncLLM:
    """One model for any number of tasks, of one event loop or of several.

    ``options`` are those of ``LLM``. Close it, or use ``async with``. Leaving the loop over a stream cancels its request, and so
    does closing the event loop.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._loaded = build_engine(str(model), EngineOptions.from_dict(options))
        self._router = EventRouter()
        self._client = EngineClient(self._loaded.engine, self._router.deliver, self._loaded.make_front())
        # The engine's thread must end before the interpreter frees what its steps use. This is undone in reverse order of
        # creation, so the thread ends before the kernels are freed.
        weakref.finalize(self, self._client.close)
        self._input_threads = ThreadPoolExecutor(INPUT_THREADS, thread_name_prefix="hasten-input")
        self._grammar_threads = ThreadPoolExecutor(GRAMMAR_THREADS, thread_name_prefix="hasten-grammar")
        self._lookup_threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="hasten-lookup")
        self._ids = itertools.count()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the engine; requests that still run end with an error. Idempotent."""
        self._router.end(EngineDied(""))
        self._input_threads.shutdown(wait=False)
        self._grammar_threads.shutdown(wait=False)
        self._lookup_threads.shutdown(wait=False)
        await asyncio.to_thread(self._client.close)
        if self._loaded.result_cache is not None:
            await asyncio.to_thread(self._loaded.result_cache.close)

    def default_sampling_params(self) -> SamplingParams:
        """See ``LLM.default_sampling_params``."""
        return self._loaded.input_processor.defaults

    def describe(self) -> dict[str, Any]:
        """See ``LLM.describe``."""
        return dict(self._loaded.description)

    async def stats(self) -> dict[str, Any]:
        """See ``LLM.stats``; the engine's thread answers between two steps.

        Raises ``HastenError`` if the engine has ended.
        """
        found = await asyncio.wrap_future(self._client.call(engine_statistics))
        return found | {"result_cache": await asyncio.to_thread(self._loaded.result_cache_stats)}

    async def load_soft_prompt(self, folder: str | os.PathLike[str]) -> SoftPrompt:
        """See ``LLM.load_soft_prompt``. Requests wait meanwhile."""
        load = self._loaded.input_processor.soft_prompts.load
        return await asyncio.wrap_future(self._client.call(lambda engine: load(folder)))

    async def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Yield deltas as they come; the last one has the complete output. Raises ``InvalidRequest``.

        ``pins`` and ``soft_prompt``: see ``LLM.generate``.
        """
        options = {"priority": priority, "cache_salt": cache_salt, "pins": pins, "soft_prompt": soft_prompt}
        make = partial(self._request, prompt, sampling_params, **options)
        request, found = await self._look_up(self._threads_for(prompt, sampling_params), make)
        async with aclosing(self._stream(request, found)) as deltas:
            async for delta in deltas:
                yield delta

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
    ) -> RequestOutput:
        """Return the output of one prompt. Cancelling the task ends the request."""
        options = {"priority": priority, "cache_salt": cache_salt, "pins": pins, "soft_prompt": soft_prompt}
        make = partial(self._request, prompt, sampling_params, **options)
        request, found = await self._look_up(self._threads_for(prompt, sampling_params), make)
        if isinstance(found, StoredResult):
            return dataclasses.replace(found.output(request, time.monotonic()), prompt=_text_of(prompt))
        async with aclosing(self._stream(request, found)) as deltas:
            async for delta in deltas:
                if delta.output is not None:
                    return dataclasses.replace(delta.output, prompt=_text_of(prompt))
        raise AssertionError("a stream ended without its output")

    async def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        tool_choice: ToolChoice = "auto",
        priority: int = 0,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
        **template_kwargs: Any,
    ) -> AsyncGenerator[Delta, None]:
        """``stream`` a conversation; see ``LLM.stream_chat``."""
        readers: list[DeltaReader] = []

        def make() -> Request:
            answers = ChatAnswers.open(self._loaded.input_processor, tools, tool_choice)
            asked = answers.prompt(messages, template_kwargs)
            readers.append(DeltaReader(answers, asked))
            options = {"priority": priority, "cache_salt": cache_salt, "pins": pins, "soft_prompt": soft_prompt}
            return self._request(asked.prompt, answers.params(sampling_params), **options)

        threads = self._threads_for(None, sampling_params, has_grammar=tool_choice not in ("auto", "none"))
        request, found = await self._look_up(threads, make)
        async with aclosing(self._stream(request, found)) as deltas:
            async for delta in deltas:
                yield readers[0].read(delta)

    async def save_kv(self, prompt: Prompt, path: str | os.PathLike[str], *, cache_salt: str = "") -> KvFile:
        """See ``LLM.save_kv``. Requests wait meanwhile.

        Cancelling the task ends it after the current step, without a file.
        """
        check_salt(cache_salt)
        token_ids = await self._encode(prompt)
        return await self._transfer(lambda files, engine: files.save(engine, token_ids, path, cache_salt))

    async def load_kv(self, path: str | os.PathLike[str], *, cache_salt: str = "") -> KvFile:
        """See ``LLM.load_kv``. Requests wait meanwhile; cancelling the task ends it after the current layer."""
        check_salt(cache_salt)
        return await self._transfer(lambda files, engine: files.load(engine, path, cache_salt))

    async def clear_kv(self, prompt: Prompt | None = None, *, cache_salt: str = "") -> int:
        """See ``LLM.clear_kv``."""
        check_salt(cache_salt)
        token_ids, files = None if prompt is None else await self._encode(prompt), KvFiles(self._loaded)
        return await asyncio.wrap_future(self._client.call(lambda engine: files.clear(engine, token_ids, cache_salt)))

    async def _transfer(self, transfer: Callable[[KvFiles, Engine], KvFile]) -> KvFile:
        """Save or load between two steps, until the task is cancelled or the engine closed."""
        await asyncio.to_thread(self._loaded.digest.get)  # requests need not wait while large files are hashed
        has_left = threading.Event()

        def check() -> None:
            self._client.check_open()
            if has_left.is_set():
                raise CancelledError

        files = KvFiles(self._loaded, check)
        try:
            return await asyncio.wrap_future(self._client.call(lambda engine: transfer(files, engine)))
        finally:
            has_left.set()

    async def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        encode = partial(self._loaded.input_processor.encode, prompt)
        return encode() if _is_short(prompt) else await self._in_thread(encode, self._input_threads)

    def _request(self, prompt: Prompt, params: SamplingParams | None, **options: Any) -> Request:
        """``options``: those of ``InputProcessor.request``."""
        return self._loaded.input_processor.request(str(next(self._ids)), prompt, params, arrival=time.monotonic(), **options)

    def _threads_for(
        self, prompt: Prompt | None, params: SamplingParams | None, *, has_grammar: bool = False
    ) -> ThreadPoolExecutor | None:
        """Return the threads that make a request; None if that takes no time.

        ``prompt`` None: it has to be rendered. ``has_grammar``: of a demanded call.
        """
        form = params.structured_outputs if isinstance(params, SamplingParams) else None
        if has_grammar or (form is not None and not self._loaded.input_processor.guides.has_compiled(form)):
            return self._grammar_threads
        return None if prompt is not None and _is_short(prompt) else self._input_threads

    async def _look_up(
        self, threads: ThreadPoolExecutor | None, make: Callable[[], Request]
    ) -> tuple[Request, StoredResult | Request]:
        """Return a request, and its stored result or what the engine takes."""
        loaded = self._loaded
        if loaded.result_cache is not None and loaded.result_cache.does_io:
            request = make() if threads is None else await self._in_thread(make, threads)
            return request, await self._in_thread(partial(loaded.find_result, request), self._lookup_threads)

        def run() -> tuple[Request, StoredResult | Request]:
            request = make()
            return request, loaded.find_result(request)

        return run() if threads is None else await self._in_thread(run, threads)

    async def _in_thread(self, make: Callable[[], T], threads: ThreadPoolExecutor) -> T:
        """Return the result of ``make``, computed beside the event loop."""
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, make)
        except RuntimeError as error:  # the threads have been shut down
            if self._router.has_ended:
                raise EngineDied("").as_exception() from error
            raise

    async def _stream(self, made: Request, found: StoredResult | Request) -> AsyncGenerator[Delta, None]:
        if isinstance(found, StoredResult):
            for delta in found.replay(made, time.monotonic()):
                yield delta
            return
        request = found
        inbox = self._router.open(request.request_id)
        is_finished = False
        try:
            self._client.add(request)
            while not is_finished:
                event = await inbox.events.get()
                if isinstance(event, RequestRejected):
                    is_finished = True
                    error = PromptTooLong if event.kind == "PromptTooLong" else InvalidRequest
                    raise error(event.what, got=event.got, allowed=event.allowed, remedy=event.remedy)
                if isinstance(event, EngineDied):
                    raise event.as_exception()
                is_finished = event.output is not None
                yield event
        finally:
            self._router.close(request.request_id)
            if not is_finished:
                self._client.abort(request.request_id)


def _text_of(prompt: Prompt) -> str | None:
    return prompt if isinstance(prompt, str) else None


def _is_short(prompt: Prompt) -> bool:
    text = prompt if isinstance(prompt, str) else prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
    return not isinstance(text, Sequence) or len(text) <= MAX_INLINE
