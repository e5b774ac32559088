"""``LLM``: load a model, generate, chat, stream, score. The engine runs in the caller's threads."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from hasten.checkpoints.model_digest import ModelDigest
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import HastenError
from hasten.core.kv_file import KvFile
from hasten.core.output import Choice, Delta, RequestOutput, ScoreOutput
from hasten.core.request import PrefixPin, Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.engine.engine import Engine
from hasten.entrypoints.batch_arguments import list_prompts, per_prompt
from hasten.entrypoints.chat_answers import ChatAnswers, ToolChoice
from hasten.entrypoints.deferred_signals import DeferredSignals
from hasten.entrypoints.embedding import embed_texts
from hasten.entrypoints.input_processor import Prompt, check_salt
from hasten.entrypoints.kv_files import KvFiles
from hasten.entrypoints.pinning import check_pinnable, pin_facts, unpin
from hasten.entrypoints.request_stream import complete_requests, run_requests, stream_requests
from hasten.entrypoints.scoring import Continuation, Scored, ScorePlan, Scoring
from hasten.entrypoints.sections.output import SectionDelta, SectionsOutput
from hasten.entrypoints.sections.section_prompts import SectionPrompts
from hasten.entrypoints.sections.section_task import SectionTask
from hasten.entrypoints.sections.write_sections import SectionWriter, last_output
from hasten.entrypoints.shared_engine import SharedEngine
from hasten.entrypoints.statistics import engine_statistics
from hasten.entrypoints.wiring.build_engine import LoadedEngine, build_engine

if TYPE_CHECKING:
    from torch import Tensor

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
        return dict(self._loaded.info.description)

    def digest(self) -> ModelDigest:
        """Return the SHA-256 of the model's files. The first call may take a second per gigabyte."""
        return self._loaded.digest.get()

    def stats(self) -> dict[str, Any]:
        """Return counters since the start and the state of the caches, as nested plain data.

        - ``engine``: ``steps``, ``computed_tokens`` (prompt, output and recomputed ones), ``sampled_rows`` (positions with a
          sampled token); of speculative decoding ``drafts`` (verified ones), ``drafted_tokens``, ``accepted_tokens``,
          ``mean_accepted_length`` (output tokens per draft), ``drafts_by_position`` (at index i: drafts of more than i tokens),
          ``accepted_by_position`` (those of which more than i were accepted), ``acceptance_by_position`` (their share) and
          ``speed_up`` over plain decoding, which is ``plain_seconds`` over ``decoding_seconds``. None: not measured.
        - ``requests`` that the engine computes: ``added``, ``waiting`` and ``running`` (now), ``finished`` (by the most severe of
          their finish reasons ``error``, ``abort``, ``length``, ``stop``); ``output_tokens`` and ``preemptions`` of the finished
          ones. Those that the result cache answers are not among them.
        - ``live``, of running and finished requests: ``prompt_tokens`` and ``cached_tokens`` of those that have their first token,
          ``generated_tokens``, and how often they were ``preempted``.
        - ``histograms`` of latencies in seconds and lengths in tokens: see ``RequestHistograms``.
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
        - ``process`` of the engine: ``pid``, ``cpu_seconds``, ``resident_bytes`` (None where the system does not say).
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
        """Drop all cached KV blocks that no running request holds, and end all pins."""
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
        self._loaded.digest.get()  # requests need not wait while large files are hashed
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            return KvFiles(self._loaded, signals.check).save(engine, token_ids, path, cache_salt)

    def load_kv(self, path: str | os.PathLike[str], *, cache_salt: str = "") -> KvFile:
        """Add the KV blocks of a file to the prefix cache, for requests with this ``cache_salt``.

        They are ordinary blocks of the cache, which evicts them when it needs their memory. Raises ``KvFileError`` for a damaged
        file or one of another model or engine, and ``CapacityError`` if running requests and pins leave too few blocks.
        """
        check_salt(cache_salt)
        self._loaded.digest.get()
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            return KvFiles(self._loaded, signals.check).load(engine, path, cache_salt)

    def clear_kv(self, prompt: Prompt | None = None, *, cache_salt: str = "") -> int:
        """Drop the cached KV blocks of a prompt, or all of them, and return how many.

        Running requests and pins of longer prompts keep theirs; pins of the prompt and of its prefixes end. Requests with a fixed
        exit layer have other blocks, which stay.
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
            loaded = self._loaded.soft_prompts.load(os.fspath(folder))
        return self._loaded.input_processor.soft_prompts.add(loaded)

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
        outputs = complete_requests(self._loaded, self._shared, requests, use_tqdm=use_tqdm)
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        return [dataclasses.replace(outputs[r.request_id], prompt=text) for r, text in zip(requests, texts, strict=True)]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Any] | None = None,
        tool_choice: ToolChoice = "auto",
        use_tqdm: bool = True,
        priorities: Sequence[int] | None = None,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | Sequence[SoftPrompt | None] | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Return one output per conversation: its text; apart from it ``reasoning`` and ``tool_calls``.

        ``tools``: definitions in OpenAI's form, or functions; ``tool_choice`` "none" leaves them out. ``template_kwargs`` go to the
        chat template, also as one mapping in ``chat_template_kwargs``. Raises ``InvalidRequest`` for what it does not read.
        """
        answers = ChatAnswers.open(self._loaded.input_processor, tools, tool_choice)
        prompts = answers.prompts(messages, template_kwargs)
        options: dict[str, Any] = {"priorities": priorities, "cache_salt": cache_salt, "pins": pins, "soft_prompt": soft_prompt}
        params = answers.all_params(sampling_params)
        outputs = self.generate([each.prompt for each in prompts], params, use_tqdm=use_tqdm, **options)
        return answers.read_all(outputs, prompts)

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
        request = self._request(prompt, sampling_params, cache_salt=cache_salt, pins=pins, soft_prompt=soft_prompt)
        return stream_requests(self._loaded, self._shared, deque([request]))

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        tool_choice: ToolChoice = "auto",
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
        **template_kwargs: Any,
    ) -> Iterator[Delta]:
        """``stream`` a conversation, asked as in ``chat``; thoughts and tool calls are apart."""
        answers = ChatAnswers.open(self._loaded.input_processor, tools, tool_choice)
        asked, params = answers.prompt(messages, template_kwargs), answers.params(sampling_params)
        stream = self.stream(asked.prompt, params, cache_salt=cache_salt, pins=pins, soft_prompt=soft_prompt)
        return answers.stream(stream, asked)

    def generate_sections(self, question: str, sampling_params: SamplingParams | None = None, **options: Any) -> SectionsOutput:
        """Return the answer to a question, its sections decoded in parallel (Ning et al., 2023).

        ``options`` are those of ``stream_sections``. Raises ``InvalidRequest`` before anything runs.
        """
        return last_output(self.stream_sections(question, sampling_params, **options))

    def stream_sections(
        self,
        question: str,
        sampling_params: SamplingParams | None = None,
        *,
        skeleton: Sequence[str] | None = None,
        max_sections: int = 8,
        section_tokens: int = 256,
        router: bool = True,
        cache_salt: str = "",
        **template_kwargs: Any,
    ) -> Generator[SectionDelta, None, None]:
        """Yield the deltas of an answer in the order of its text; the last one has the complete output.

        The headings are ``skeleton``, or an outline that the model writes first. A section follows those that its heading refers
        to; all others run together, and the text of a later one waits for the earlier ones. With a chat template the question is
        the user's message, and ``template_kwargs`` go to it. The answer is decoded plainly, and ``plain_reason`` says why, if the
        router (trained weights of the question's words) expects one connected or short answer, or if the outline is malformed.
        ``router=False`` chooses sections, whatever the question is.

        A section has at most ``section_tokens`` tokens, and no more than the context holds. ``max_tokens`` bounds plain decoding,
        which is as long as ``max_sections`` sections without it. Section i has the seed ``seed + i``. Closing the iterator ends
        all requests. Raises ``InvalidRequest`` before anything runs.
        """
        processor = self._loaded.input_processor
        params = processor.check_params(sampling_params)
        task = SectionTask.checked(question, params, skeleton, max_sections, section_tokens, router)
        make_request = partial(self._request, cache_salt=cache_salt)
        stream = partial(stream_requests, self._loaded, self._shared)
        prompts = SectionPrompts(processor, question, template_kwargs)
        return SectionWriter(task, prompts, make_request, stream, self.engine.clock).write()

    def score(
        self,
        prompt: Prompt,
        continuations: Sequence[Continuation],
        sampling_params: SamplingParams | None = None,
        *,
        cache_salt: str = "",
        soft_prompt: SoftPrompt | None = None,
    ) -> list[ScoreOutput]:
        """Return the log-probabilities of each continuation after the prompt, in order.

        The prompt is computed once. A continuation is ``{"token_ids": [...]}`` or text; spaces at the prompt's end count for the
        text. ``soft_prompt`` stands before the prompt. Of the settings only those of early exit apply, with rule none, fixed,
        entropy or prompt_hash. Streams may be open meanwhile.

        Raises ``InvalidRequest`` before anything runs, and ``CapacityError`` if running requests leave too few KV blocks.
        """
        plan = Scoring(self._loaded.input_processor, cache_salt, soft_prompt).plan(prompt, continuations, sampling_params)
        return plan.outputs(self._score(plan))

    def choose(
        self,
        prompt: Prompt,
        choices: Sequence[Continuation],
        sampling_params: SamplingParams | None = None,
        *,
        normalize: Literal["mean", "sum"] = "mean",
        cache_salt: str = "",
        soft_prompt: SoftPrompt | None = None,
    ) -> Choice:
        """Return the most likely choice after the prompt.

        ``normalize``: by log-probability per token (``mean``) or in total (``sum``). Other arguments and errors are those of
        ``score``.
        """
        scoring = Scoring(self._loaded.input_processor, cache_salt, soft_prompt)
        plan = scoring.plan_choice(prompt, choices, sampling_params, normalize)
        return plan.choice(self._score(plan))

    def embed(self, texts: Sequence[Prompt]) -> Tensor:
        """Return one vector of length 1 per text, to compare texts by cosine similarity. [N, E], float32

        It is the direction of the mean over tokens of the hidden states after the final norm. A language model was not trained for
        it, so a model made for embeddings compares better. Raises as ``score`` does.
        """
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            engine.scheduler.kv.pins.advance(engine.clock())
            return embed_texts(self._loaded.input_processor, self._loaded.embedder, texts, signals.check)

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
        output = run_requests(self._shared, [request], use_tqdm=False)[request.request_id]
        with DeferredSignals(), self._shared.exclusive() as engine:
            return pin_facts(engine, request, output)

    def unpin_kv(self, prompt: Prompt | None = None, *, cache_salt: str = "") -> int:
        """End the pin of a prompt; without a prompt, end all pins of all tenants. Return their number.

        The blocks stay cached until others need their place. Raises ``InvalidRequest`` for a ``cache_salt`` without a prompt.
        """
        check_salt(cache_salt)
        token_ids = None if prompt is None else self._loaded.input_processor.encode(prompt)
        with DeferredSignals(), self._shared.exclusive() as engine:
            return unpin(engine, token_ids, cache_salt)

    def _score(self, plan: ScorePlan) -> list[Scored]:
        with DeferredSignals() as signals, self._shared.exclusive() as engine:
            scorer = engine.continuation_scorer(signals.check)
            return [scorer.score(self._loaded.admit(request), texts) for request, texts in plan.queries]

    def _request(self, prompt: Prompt, params: SamplingParams | None, **options: Any) -> Request:
        """``options``: those of ``InputProcessor.request``."""
        processor = self._loaded.input_processor
        request = processor.request(str(next(self._ids)), prompt, params, arrival=self.engine.clock(), **options)
        request = self._loaded.admit(request)
        self.engine.scheduler.check_capacity(request)
        return request
