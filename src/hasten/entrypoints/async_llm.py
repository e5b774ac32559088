"""``AsyncLLM``: the engine in a thread or a process of its own, and outputs as async iterators."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, TypeVar

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption, InvalidRequest, PromptTooLong, show
from hasten.core.kv_file import KvFile
from hasten.core.output import Choice, Delta, RequestOutput, RequestRejected, ScoreOutput
from hasten.core.request import PrefixPin, Request
from hasten.core.result import TokenLogprob
from hasten.core.sampling_params import MAX_LOGPROBS, SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.entrypoints.chat_answers import DeltaReader, PreparedChat, ToolChoice
from hasten.entrypoints.engine_client import EngineClient, EngineDied, OnEvents
from hasten.entrypoints.event_router import EventRouter
from hasten.entrypoints.input_processor import InputProcessor, Prompt, check_salt
from hasten.entrypoints.scoring import Continuation, Scoring
from hasten.text.tokenizer import TextTokenizer

INPUT_THREADS = 2  # that tokenise long prompts and render conversations beside the event loop
MAX_INLINE = 2_000  # characters or token ids of a prompt that is tokenised in the event loop, in less than a millisecond
TRANSPORTS = ("thread", "process")

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]


class AsyncLLM:
    """One model for any number of tasks, of one event loop or of several.

    ``transport``: where the engine runs, in a thread of this process or in a process of its own, which does not share the
    interpreter lock. ``options`` are those of ``LLM``. Close it, or use ``async with``. Leaving the loop over a stream cancels its
    request, and so does closing the event loop.
    """

    def __init__(self, model: str, *, transport: Literal["thread", "process"] = "thread", **options: Any) -> None:
        self._router = EventRouter()
        self._client = _open_engine(str(model), EngineOptions.from_dict(options), transport, self._router.deliver)
        # The engine's thread must end before the interpreter frees what its steps use. This is undone in reverse order of
        # creation, so the thread ends before the kernels are freed.
        weakref.finalize(self, self._client.close)
        self._input_threads = ThreadPoolExecutor(INPUT_THREADS, thread_name_prefix="hasten-input")
        self._ids = itertools.count()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the engine; requests that still run end with an error. Idempotent."""
        self._router.end(EngineDied(""))
        self._input_threads.shutdown(wait=False)
        await asyncio.to_thread(self._client.close)

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The checkpoint's tokenizer, or None."""
        return self._processor.tokenizer

    @property
    def max_model_len(self) -> int:
        """The most tokens of a prompt and its output."""
        return self._client.info.max_model_len

    @property
    def pid(self) -> int:
        """The id of the process in which the engine runs."""
        return self._client.pid

    @property
    def has_ended(self) -> bool:
        """Whether the engine has ended: it was closed, or it died."""
        return self._router.has_ended

    def default_sampling_params(self) -> SamplingParams:
        """See ``LLM.default_sampling_params``."""
        return self._client.info.defaults

    def describe(self) -> dict[str, Any]:
        """See ``LLM.describe``."""
        return dict(self._client.info.description)

    async def stats(self) -> dict[str, Any]:
        """See ``LLM.stats``; the engine's thread answers between two steps.

        Raises ``HastenError`` if the engine has ended.
        """
        found: dict[str, Any] = await self._call("statistics")
        return found | {"result_cache": await self._call("result_cache_statistics")}

    async def load_soft_prompt(self, folder: str | os.PathLike[str]) -> SoftPrompt:
        """See ``LLM.load_soft_prompt``. Requests wait meanwhile."""
        return self._processor.soft_prompts.add(await self._call("load_soft_prompt", folder=os.fspath(folder)))

    async def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
        use_result_cache: bool = True,
    ) -> AsyncGenerator[Delta, None]:
        """Yield deltas as they come; the last one has the complete output. Raises ``InvalidRequest``.

        ``pins`` and ``soft_prompt``: see ``LLM.generate``. ``use_result_cache`` False: the output is not looked up, nor stored.
        """
        options: dict[str, Any] = {"pins": pins, "soft_prompt": soft_prompt, "use_result_cache": use_result_cache}
        options |= {"priority": priority, "cache_salt": cache_salt}
        make = partial(self._request, prompt, sampling_params, **options)
        request = make() if _is_short(prompt) else await self._in_thread(make)
        async with aclosing(self._stream(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def generate(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Any) -> RequestOutput:
        """Return the output of one prompt. Cancelling the task ends the request.

        ``options`` are those of ``stream``.
        """
        return dataclasses.replace(await _last(self.stream(prompt, sampling_params, **options)), prompt=_text_of(prompt))

    async def prepare_chat(
        self, messages: Messages, *, tools: Sequence[Any] | None = None, tool_choice: ToolChoice = "auto", **template_kwargs: Any
    ) -> PreparedChat:
        """Return a conversation rendered and tokenised, for ``chat`` and ``stream_chat``.

        Raises ``InvalidRequest``.
        """
        return await self._in_thread(lambda: PreparedChat.of(self._processor, messages, tools, tool_choice, template_kwargs))

    async def stream_chat(
        self,
        messages: Messages | PreparedChat,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        tool_choice: ToolChoice = "auto",
        priority: int = 0,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
        use_result_cache: bool = True,
        **template_kwargs: Any,
    ) -> AsyncGenerator[Delta, None]:
        """``stream`` a conversation; see ``LLM.stream_chat``.

        With a ``PreparedChat`` the tools, their choice and ``template_kwargs`` are those that it was prepared with.
        """
        options: dict[str, Any] = {"pins": pins, "soft_prompt": soft_prompt, "use_result_cache": use_result_cache}
        options |= {"priority": priority, "cache_salt": cache_salt}

        def make() -> tuple[PreparedChat, Request]:
            prepared = messages
            if not isinstance(prepared, PreparedChat):
                prepared = PreparedChat.of(self._processor, prepared, tools, tool_choice, template_kwargs)
            return prepared, self._request(prepared.asked.prompt, prepared.answers.params(sampling_params), **options)

        prepared, request = make() if isinstance(messages, PreparedChat) else await self._in_thread(make)
        reader = DeltaReader(prepared.answers, prepared.asked)
        async with aclosing(self._stream(request)) as deltas:
            async for delta in deltas:
                yield reader.read(delta)

    async def chat(
        self, messages: Messages | PreparedChat, sampling_params: SamplingParams | None = None, **options: Any
    ) -> RequestOutput:
        """Return the answer to a conversation; ``options`` are those of ``stream_chat``. See ``LLM.chat``."""
        return await _last(self.stream_chat(messages, sampling_params, **options))

    async def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt. Raises ``InvalidRequest`` or ``PromptTooLong``."""
        encode = partial(self._processor.encode, prompt)
        return encode() if _is_short(prompt) else await self._in_thread(encode)

    async def score(
        self,
        prompt: Prompt,
        continuations: Sequence[Continuation],
        sampling_params: SamplingParams | None = None,
        *,
        cache_salt: str = "",
        soft_prompt: SoftPrompt | None = None,
    ) -> list[ScoreOutput]:
        """See ``LLM.score``. Other requests go on meanwhile, a step for each step of the scoring."""
        scoring = Scoring(self._processor, cache_salt, soft_prompt)
        plan = await self._in_thread(partial(scoring.plan, prompt, continuations, sampling_params))
        return plan.outputs([await self._call("score", request=query, continuations=texts) for query, texts in plan.queries])

    async def choose(
        self,
        prompt: Prompt,
        choices: Sequence[Continuation],
        sampling_params: SamplingParams | None = None,
        *,
        normalize: Literal["mean", "sum"] = "mean",
        cache_salt: str = "",
        soft_prompt: SoftPrompt | None = None,
    ) -> Choice:
        """See ``LLM.choose``. Other requests go on meanwhile, as in ``score``."""
        scoring = Scoring(self._processor, cache_salt, soft_prompt)
        plan = await self._in_thread(partial(scoring.plan_choice, prompt, choices, sampling_params, normalize))
        return plan.choice([await self._call("score", request=query, continuations=texts) for query, texts in plan.queries])

    async def prompt_logprobs(self, prompt: Prompt, top: int = 0) -> tuple[TokenLogprob | None, ...]:
        """Return the log-probability of each prompt token after those before it; None for the first.

        ``top``: how many of the most likely tokens to report beside each. The prompt is computed as a whole, without the prefix
        cache. Raises ``InvalidRequest`` and ``CapacityError``.
        """
        if type(top) is not int or not 0 <= top <= MAX_LOGPROBS:
            raise InvalidRequest("top is out of range", got=show(top), allowed=f"0 to {MAX_LOGPROBS}")
        return tuple(await self._call("prompt_logprobs", token_ids=await self.encode(prompt), top=top))

    async def reset_prefix_cache(self) -> int:
        """Drop all cached KV blocks that no running request holds, and end all pins. Return how many blocks."""
        found: int = await self._call("reset_prefix_cache")
        return found

    async def reset_result_cache(self) -> int:
        """Remove all results of the result cache's store, and return how many. Raises ``HastenError``."""
        found: int = await self._call("reset_result_cache")
        return found

    async def pin_kv(self, prompt: Prompt, seconds: float, *, cache_salt: str = "") -> dict[str, Any]:
        """See ``LLM.pin_kv``."""
        token_ids = await self.encode(prompt)
        pin = PrefixPin(num_tokens=len(token_ids), seconds=seconds)
        params = SamplingParams(temperature=0, max_tokens=1)
        request = self._request({"prompt_token_ids": token_ids}, params, cache_salt=cache_salt, pins=(pin,))
        await self._call("check_pinnable", num_tokens=len(token_ids))
        found: dict[str, Any] = await self._call("pin_facts", request=request, output=await _last(self._stream(request)))
        return found

    async def unpin_kv(self, prompt: Prompt | None = None, *, cache_salt: str = "") -> int:
        """See ``LLM.unpin_kv``."""
        check_salt(cache_salt)
        token_ids = None if prompt is None else await self.encode(prompt)
        found: int = await self._call("unpin", token_ids=token_ids, cache_salt=cache_salt)
        return found

    async def save_kv(self, prompt: Prompt, path: str | os.PathLike[str], *, cache_salt: str = "") -> KvFile:
        """See ``LLM.save_kv``. Requests wait meanwhile.

        Cancelling the task ends it after the current step, without a file.
        """
        check_salt(cache_salt)
        token_ids = await self.encode(prompt)
        await self._call("compute_digest")  # requests need not wait while large files are hashed
        found: KvFile = await self._call("save_kv", token_ids=token_ids, path=_path(path), cache_salt=cache_salt)
        return found

    async def load_kv(self, path: str | os.PathLike[str], *, cache_salt: str = "") -> KvFile:
        """See ``LLM.load_kv``. Requests wait meanwhile; cancelling the task ends it after the current layer."""
        check_salt(cache_salt)
        await self._call("compute_digest")
        found: KvFile = await self._call("load_kv", path=_path(path), cache_salt=cache_salt)
        return found

    async def clear_kv(self, prompt: Prompt | None = None, *, cache_salt: str = "") -> int:
        """See ``LLM.clear_kv``."""
        check_salt(cache_salt)
        token_ids = None if prompt is None else await self.encode(prompt)
        found: int = await self._call("clear_kv", token_ids=token_ids, cache_salt=cache_salt)
        return found

    @property
    def _processor(self) -> InputProcessor:
        return self._client.input_processor

    def _request(self, prompt: Prompt, params: SamplingParams | None, **options: Any) -> Request:
        """``options``: those of ``InputProcessor.request``."""
        return self._processor.request(str(next(self._ids)), prompt, params, arrival=time.monotonic(), **options)

    async def _call(self, name: str, **arguments: Any) -> Any:
        """Return the result of one of ``engine_calls``. Cancelling the task ends the call soon."""
        pending = self._client.call(name, **arguments)
        try:
            return await asyncio.wrap_future(pending.result)
        except asyncio.CancelledError:
            pending.cancel()
            raise

    async def _in_thread(self, make: Callable[[], T]) -> T:
        """Return the result of ``make``, computed beside the event loop."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._input_threads, make)
        except RuntimeError as error:  # the threads have been shut down
            if self._router.has_ended:
                raise EngineDied("").as_exception() from error
            raise

    async def _stream(self, request: Request) -> AsyncGenerator[Delta, None]:
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


def _open_engine(model: str, options: EngineOptions, transport: str, on_events: OnEvents) -> EngineClient:
    if transport not in TRANSPORTS:
        raise InvalidOption("unknown transport", got=show(transport), allowed=", ".join(TRANSPORTS))
    if transport == "process":
        from hasten.entrypoints.engine_process.client import EngineProcess  # needs msgpack, of the extra "serve"

        return EngineProcess(model, options, on_events)
    from hasten.entrypoints.engine_host import EngineHost
    from hasten.entrypoints.wiring.build_engine import build_engine

    return EngineHost(build_engine(model, options), on_events)


async def _last(stream: AsyncGenerator[Delta, None]) -> RequestOutput:
    """Return the output that a stream ends with."""
    async with aclosing(stream) as deltas:
        async for delta in deltas:
            if delta.output is not None:
                return delta.output
    raise AssertionError("a stream ended without its output")


def _path(path: str | os.PathLike[str]) -> str:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _text_of(prompt: Prompt) -> str | None:
    return prompt if isinstance(prompt, str) else None


def _is_short(prompt: Prompt) -> bool:
    text = prompt if isinstance(prompt, str) else prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
    return not isinstance(text, Sequence) or len(text) <= MAX_INLINE
