"""``LLM``: load a model, generate, chat, stream, score. The engine runs in the caller's threads."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from hasten.caching.stored_result import StoredResult
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import HastenError
from hasten.core.kv_file import KvFile
from hasten.core.output import Choice, Delta, RequestOutput, ScoreOutput
from hasten.core.request import PrefixPin, Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.engine.engine import Engine
from hasten.entrypoints.deferred_signals import DeferredSignals
from hasten.entrypoints.input_processor import Prompt, check_salt
from hasten.entrypoints.kv_files import KvFiles
from hasten.entrypoints.pinning import check_pinnable, pin_facts, pinned_prefix
from hasten.entrypoints.progress import generation_bar
from hasten.entrypoints.prompt_lists import list_prompts, per_prompt
from hasten.entrypoints.scoring import Continuation, Scoring
from hasten.entrypoints.shared_engine import Inbox, SharedEngine
from hasten.entrypoints.statistics import engine_statistics
from hasten.entrypoints.wiring.build_engine import LoadedEngine, build_engine

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """One model and its engine, for any number of threads: their requests share the engine's batches.

    ``options`` are the fields of ``EngineOptions``. Raises ``HastenError`` if the model cannot be loaded or does not fit.
    Ctrl-C takes effect after the current step, and leaves no request behind.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._open: LoadedEngine | None = build_engine(str(model), EngineOptions.from_dict(options))
        self._shared = SharedEngine(self._open.engine, self._open.make_front())
        self._ids = itertools.count()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all requests and free the model. Idempotent; every other call then raises ``HastenError``."""
        with DeferredSignals():
            self._shared.close()
            loaded, self._open = self._open, None
        if loaded is not None and loaded.result_cache is not None:
            loaded.result_cache.close()

    @property
    def engine(self) -> Engine:
        """The engine. A caller that uses it directly must be the only thread."""
        return self._loaded.engine

    @property
    def _loaded(self) -> LoadedEngine:
        if self._open is None:
            raise HastenError("this LLM is closed", remedy="Make a new one")
        return self._open

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer (``TextTokenizer``), or None."""
        return self._loaded.input_processor.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """Return the settings of requests without any: the checkpoint's ``generation_config.json``."""
        return self._loaded.input_processor.defaults

    def describe(self) -> dict[str, Any]:
        """Return the model, its kernels and its memory."""
        return dict(self._loaded.description)

    def stats(self) -> dict[str, Any]:
        """Return counters since the start and the state of the caches, as nested plain data.

        - ``engine``: ``steps``, ``computed_tokens`` (prompt, output and recomputed ones), ``sampled_rows`` (positions with a
          sampled token); of speculative decoding ``drafts`` (verified ones), ``drafted_tokens``, ``accepted_tokens``,
          ``mean_accepted_length`` (output tokens per draft), ``acceptance_by_position`` (at index i: the share of drafts of more
          than i tokens of which more than i were accepted) and ``speed_up`` over plain decoding. None: not measured.
        - ``requests``: ``added``, ``waiting`` and ``running`` (now), ``finished`` (by the most severe of their finish reasons
          ``error``, ``abort``, ``length``, ``stop``); ``output_tokens`` and ``preemptions`` of the finished ones.
        - ``kv``: ``block_size`` (tokens), ``blocks``, ``held_blocks`` (by requests and pins), ``cached_blocks`` (findable, not
          held), ``free_blocks``, ``usage`` (held / blocks), all of the KV group with the most held blocks; ``evicted_blocks``
          (cached ones that requests took, of all groups).
        - ``prefix_cache``, of finished requests: ``query_tokens`` (prompt tokens looked up), ``hit_tokens``, ``hit_rate`` (None
          without queries), ``shareable_tokens`` (that the cache could have given, had the part that varies stood last; see
          ``RequestMetrics``) and ``advice``: a sentence, or None if prompts of another order would gain less than one percent.
        - ``pins``: ``pins``, a list, unused for longest first, each with ``num_tokens``, ``num_blocks``, ``seconds`` (after its
          last use), ``expires_in`` (seconds) and ``hits``; ``pinned_blocks``; counters of pins that were ``set``, ``refreshed``,
          used (``hits``), ``expired``, ``evicted`` (for new pins), ``dropped`` (for a request that could not go on), ``removed``
          and ``refused``.
        - ``result_cache``: None without one. ``hits`` and ``misses`` of lookups, requests ``shared`` with an equal one that ran,
          ``hit_rate`` (requests that the engine did not compute, of those that were looked up), results ``stored``, ``dropped``
          (not stored), ``damaged`` (found broken) and ``unwritten`` (waiting); ``passed``, requests that were not looked up, by
          reason; ``off_because``: why none is, or None; ``store``: see ``GuardedStore.stats``.
        """
        loaded = self._loaded
        with DeferredSignals(), self._shared.exclusive() as engine:
            found = engine_statistics(engine)
        return found | {"result_cache": loaded.result_cache_stats()}

    def reset_prefix_cache(self) -> None:
        """Drop all cached KV blocks that no running request holds."""
        with DeferredSignals(), self._shared.exclusive() as engine:
            engine.clear_prefix_cache()

    def save_kv(self, prompt: Prompt, path: str | os.PathLike[str], *, cache_salt: str = "") -> KvFile:
        """Write the KV blocks of a prompt to a file, which replaces an older one when it is complete.

        Blocks that the prefix cache lacks are computed first; only blocks that the prompt fills are saved. The file tells what the
        prompt was, so only its owner may read it. Raises ``InvalidRequest`` for a prompt shorter than a block, ``CapacityError`` if
        the KV pool or the disk is too small, and ``InvalidOption`` for a path that cannot be written.
        """
        check_salt(cache_salt)
        token_ids = self._loaded.input_processor.encode(prompt)
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            return KvFiles(self._loaded, signals.check).save(engine, token_ids, path, cache_salt)

    def load_kv(self, path: str | os.PathLike[str], *, cache_salt: str = "") -> KvFile:
        """Add the KV blocks of a file to the prefix cache, for requests with this ``cache_salt``.

        They are ordinary blocks of the cache, which evicts them when it needs their memory. Raises ``KvFileError`` for a damaged
        file or one of another model or engine, and ``CapacityError`` if running requests leave too few blocks.
        """
        check_salt(cache_salt)
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            return KvFiles(self._loaded, signals.check).load(engine, path, cache_salt)

    def clear_kv(self, prompt: Prompt | None = None, *, cache_salt: str = "") -> int:
        """Drop the cached KV blocks of a prompt, or all of them, and return how many.

        Running requests keep theirs.
        """
        check_salt(cache_salt)
        token_ids = None if prompt is None else self._loaded.input_processor.encode(prompt)
        with DeferredSignals(), self._shared.exclusive() as engine:
            return KvFiles(self._loaded).clear(engine, token_ids, cache_salt)

    def load_soft_prompt(self, folder: str | os.PathLike[str]) -> SoftPrompt:
        """Load a soft prompt (prompt tuning, in PEFT's format) for requests that name it.

        It stays loaded as long as the model. Warns if it was trained for another model. Raises ``CheckpointError`` for an adapter
        that is broken, of another kind, or of another hidden size.
        """
        with DeferredSignals(), self._shared.exclusive():
            return self._loaded.input_processor.soft_prompts.load(folder)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priorities: Sequence[int] | None = None,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | Sequence[SoftPrompt | None] | None = None,
    ) -> list[RequestOutput]:
        """Return one output per prompt, in order. A prompt is text or ``{"prompt_token_ids": [...]}``.

        ``pins``: prefixes of each prompt whose KV blocks stay in the prefix cache after the request, for a time after their last
        use. They are set when they are computed, as far as ``max_pins`` and ``max_pinned_share`` permit.
        ``soft_prompt``: what ``load_soft_prompt`` returned, for all prompts, or one or None for each.

        Raises ``InvalidRequest`` before anything runs if any prompt or setting is wrong.
        """
        listed = list_prompts(prompts)
        all_params = per_prompt(sampling_params, len(listed), "sampling_params")
        all_priorities = per_prompt(priorities, len(listed), "priorities")
        soft_prompts = per_prompt(soft_prompt, len(listed), "soft_prompt")
        requests = [
            self._request(prompt, params, priority=priority or 0, cache_salt=cache_salt, pins=pins, soft_prompt=soft)
            for prompt, params, priority, soft in zip(listed, all_params, all_priorities, soft_prompts, strict=True)
        ]
        outputs: dict[str, RequestOutput] = {}
        missing: list[Request] = []
        for request in requests:
            found = self._loaded.find_result(request)
            if isinstance(found, StoredResult):
                outputs[request.request_id] = found.output(request, self.engine.clock())
            else:
                missing.append(found)
        outputs |= self._run(missing, use_tqdm)
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        return [dataclasses.replace(outputs[r.request_id], prompt=text) for r, text in zip(requests, texts, strict=True)]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Any] | None = None,
        use_tqdm: bool = True,
        priorities: Sequence[int] | None = None,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | Sequence[SoftPrompt | None] | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Return one output per conversation.

        ``template_kwargs`` go to the checkpoint's chat template, also as one mapping in ``chat_template_kwargs``. Raises
        ``InvalidRequest`` for those that it does not read.
        """
        is_batch = isinstance(messages, (list, tuple)) and messages and isinstance(messages[0], (list, tuple))
        conversations: Any = messages if is_batch else [messages]
        prompts = [self._loaded.input_processor.chat_prompt(one, tools, template_kwargs) for one in conversations]
        options: dict[str, Any] = {"priorities": priorities, "cache_salt": cache_salt, "pins": pins, "soft_prompt": soft_prompt}
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, **options)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
    ) -> Iterator[Delta]:
        """Yield deltas; the last one has the complete output. Closing the iterator ends the request."""
        return self._stream(self._request(prompt, sampling_params, cache_salt=cache_salt, pins=pins, soft_prompt=soft_prompt))

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
        **template_kwargs: Any,
    ) -> Iterator[Delta]:
        """``stream`` a conversation, rendered by the checkpoint's chat template."""
        prompt = self._loaded.input_processor.chat_prompt(messages, tools, template_kwargs)
        return self.stream(prompt, sampling_params, cache_salt=cache_salt, pins=pins, soft_prompt=soft_prompt)

    def score(
        self,
        prompt: Prompt,
        continuations: Sequence[Continuation],
        sampling_params: SamplingParams | None = None,
        *,
        cache_salt: str = "",
    ) -> list[ScoreOutput]:
        """Return the log-probabilities of each continuation after the prompt, in order.

        The prompt is computed once. A continuation is ``{"token_ids": [...]}`` or text; spaces at the prompt's end count for the
        text. Of the settings only those of early exit apply, with rule none, fixed, entropy or prompt_hash. Streams may be open
        meanwhile.

        Raises ``InvalidRequest`` before anything runs, and ``CapacityError`` if running requests leave too few KV blocks.
        """
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            scoring = Scoring(self._loaded.input_processor, engine.continuation_scorer(signals.check))
            return scoring.score(prompt, continuations, sampling_params, cache_salt=cache_salt)

    def choose(
        self,
        prompt: Prompt,
        choices: Sequence[Continuation],
        sampling_params: SamplingParams | None = None,
        *,
        normalize: Literal["mean", "sum"] = "mean",
        cache_salt: str = "",
    ) -> Choice:
        """Return the most likely choice after the prompt.

        ``normalize``: by log-probability per token (``mean``) or in total (``sum``). Other arguments and errors are those of
        ``score``.
        """
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            scoring = Scoring(self._loaded.input_processor, engine.continuation_scorer(signals.check))
            return scoring.choose(prompt, choices, sampling_params, normalize=normalize, cache_salt=cache_salt)

    def pin_kv(self, prompt: Prompt, seconds: float, *, cache_salt: str = "") -> dict[str, Any]:
        """Keep the KV blocks of a prompt in the prefix cache, and return the pin as plain data.

        The prompt is computed if it is not cached. The pin ends ``seconds`` after the last request that began with the prompt.
        Raises ``InvalidRequest`` if the prompt cannot be pinned.
        """
        token_ids = self._loaded.input_processor.encode(prompt)
        pin = PrefixPin(num_tokens=len(token_ids), seconds=seconds)
        params = SamplingParams(temperature=0, max_tokens=1)
        request = self._request({"prompt_token_ids": token_ids}, params, cache_salt=cache_salt, pins=(pin,))
        with DeferredSignals(), self._shared.exclusive() as engine:
            check_pinnable(engine.scheduler.kv, len(token_ids))
        output = self._run([request], use_tqdm=False)[request.request_id]
        with DeferredSignals(), self._shared.exclusive() as engine:
            return pin_facts(engine, request, output)

    def unpin_kv(self, prompt: Prompt | None = None, *, cache_salt: str = "") -> int:
        """End the pin of a prompt; without a prompt, end all pins of all tenants. Return their number.

        The blocks stay cached until others need their place.
        """
        check_salt(cache_salt)
        token_ids = None if prompt is None else self._loaded.input_processor.encode(prompt)
        with DeferredSignals(), self._shared.exclusive() as engine:
            kv = engine.scheduler.kv
            if token_ids is None:
                return kv.pins.unpin()
            block_hash = pinned_prefix(kv, token_ids, cache_salt)
            return 0 if block_hash is None else kv.pins.unpin(block_hash)

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        **options: Any,
    ) -> Request:
        """``options``: those of ``InputProcessor.request``."""
        processor = self._loaded.input_processor
        request = processor.request(str(next(self._ids)), prompt, params, arrival=self.engine.clock(), **options)
        self.engine.scheduler.check_capacity(request)
        return request

    def _stream(self, request: Request) -> Iterator[Delta]:
        found = self._loaded.find_result(request)
        if isinstance(found, StoredResult):
            yield from found.replay(request, self.engine.clock())
            return
        request, shared = found, self._shared
        inbox = Inbox([request])
        is_open = False
        try:
            while True:
                with DeferredSignals() as signals:
                    if not is_open:
                        shared.open(inbox)
                        is_open = True
                    deltas = shared.take(inbox, signals.check)
                for delta in deltas:
                    yield delta
                    if delta.output is not None:
                        return
        finally:
            try:
                with DeferredSignals():
                    shared.abandon(inbox.unfinished)
            finally:  # a signal may come before it can be deferred
                if inbox.unfinished:
                    shared.abandon(inbox.unfinished)

    def _run(self, requests: Sequence[Request], use_tqdm: bool) -> dict[str, RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        shared = self._shared
        with DeferredSignals() as signals:
            inbox = Inbox(requests)
            try:
                shared.open(inbox)
                with generation_bar(len(requests), visible=use_tqdm) as progress:
                    while inbox.unfinished or inbox.deltas:
                        deltas = shared.take(inbox, signals.check)
                        finished = {delta.request_id: delta.output for delta in deltas if delta.output is not None}
                        outputs |= finished
                        progress(len(finished), sum(len(delta.token_ids) for delta in deltas))
            finally:
                shared.abandon(inbox.unfinished)
        return outputs
