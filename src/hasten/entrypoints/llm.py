"""``LLM``: load a model, generate, chat, stream, score. The engine runs in the caller's thread."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidRequest
from hasten.core.output import Choice, Delta, RequestOutput, ScoreOutput
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.input_processor import Prompt
from hasten.entrypoints.progress import generation_bar
from hasten.entrypoints.scoring import Continuation, Scoring
from hasten.entrypoints.wiring.build_engine import build_engine

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """One model and its engine. It is not thread-safe; use ``AsyncLLM`` for concurrent callers.

    ``options`` are the fields of ``EngineOptions``. Raises ``HastenError`` if the model cannot be loaded or does not fit.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._loaded = build_engine(str(model), EngineOptions.from_dict(options))
        self.engine = self._loaded.engine
        self._scoring = Scoring(self._loaded.input_processor, self.engine.continuation_scorer())
        self._ids = itertools.count()
        # Deltas not yet consumed, per open request: several streams may be open at a time.
        self._inboxes: dict[str, deque[Delta]] = {}

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

    def reset_prefix_cache(self) -> None:
        """Drop all cached KV blocks that no running request holds."""
        self.engine.scheduler.kv.clear_cached()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priorities: Sequence[int] | None = None,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Return one output per prompt, in order. A prompt is text or ``{"prompt_token_ids": [...]}``.

        Raises ``InvalidRequest`` before anything runs if any prompt or setting is wrong.
        """
        listed: Sequence[Prompt] = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        all_params = _per_prompt(sampling_params, len(listed), "sampling_params")
        all_priorities = _per_prompt(priorities, len(listed), "priorities")
        requests = [
            self._request(prompt, params, priority=priority or 0, cache_salt=cache_salt)
            for prompt, params, priority in zip(listed, all_params, all_priorities, strict=True)
        ]
        outputs = self._run(requests, use_tqdm)
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
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Return one output per conversation.

        ``template_kwargs`` go to the checkpoint's chat template, also as one mapping in ``chat_template_kwargs``. Raises
        ``InvalidRequest`` for those that it does not read.
        """
        is_batch = isinstance(messages, (list, tuple)) and messages and isinstance(messages[0], (list, tuple))
        conversations: Any = messages if is_batch else [messages]
        prompts = [self._loaded.input_processor.chat_prompt(one, tools, template_kwargs) for one in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, priorities=priorities, cache_salt=cache_salt)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_salt: str = "") -> Iterator[Delta]:
        """Yield deltas; the last one has the complete output. Closing the iterator ends the request."""
        return self._stream(self._request(prompt, sampling_params, cache_salt=cache_salt))

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        cache_salt: str = "",
        **template_kwargs: Any,
    ) -> Iterator[Delta]:
        """``stream`` a conversation, rendered by the checkpoint's chat template."""
        prompt = self._loaded.input_processor.chat_prompt(messages, tools, template_kwargs)
        return self.stream(prompt, sampling_params, cache_salt=cache_salt)

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
        return self._scoring.score(prompt, continuations, sampling_params, cache_salt=cache_salt)

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
        return self._scoring.choose(prompt, choices, sampling_params, normalize=normalize, cache_salt=cache_salt)

    def _request(self, prompt: Prompt, params: SamplingParams | None, *, priority: int = 0, cache_salt: str = "") -> Request:
        request = self._loaded.input_processor.request(
            str(next(self._ids)),
            prompt,
            params,
            arrival=self.engine.clock(),
            priority=priority,
            cache_salt=cache_salt,
        )
        self.engine.scheduler.check_capacity(request)
        return request

    def _stream(self, request: Request) -> Iterator[Delta]:
        inbox = self._open(request)
        try:
            while True:
                while not inbox:
                    self._step()
                delta = inbox.popleft()
                yield delta
                if delta.output is not None:
                    return
        finally:
            self._close(request.request_id)

    def _run(self, requests: Sequence[Request], use_tqdm: bool) -> dict[str, RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        inboxes = {}
        try:
            for request in requests:
                inboxes[request.request_id] = self._open(request)
            with generation_bar(len(requests), visible=use_tqdm) as progress:
                while len(outputs) < len(requests):
                    self._step()
                    deltas = [inbox.popleft() for inbox in inboxes.values() for _ in range(len(inbox))]
                    finished = {delta.request_id: delta.output for delta in deltas if delta.output is not None}
                    outputs |= finished
                    progress(len(finished), sum(len(delta.token_ids) for delta in deltas))
        finally:
            for request_id in inboxes:
                self._close(request_id)
        return outputs

    def _open(self, request: Request) -> deque[Delta]:
        self.engine.add(request)
        return self._inboxes.setdefault(request.request_id, deque())

    def _close(self, request_id: str) -> None:
        del self._inboxes[request_id]
        self.engine.abort(request_id)

    def _step(self) -> None:
        if pause := self.engine.idle_seconds():
            time.sleep(pause)
        for delta in self.engine.step():
            if delta.request_id in self._inboxes:
                self._inboxes[delta.request_id].append(delta)


def _per_prompt(values: Any, num_prompts: int, name: str) -> list[Any]:
    """Return one value per prompt, from one value for all of them or one for each."""
    if values is None or isinstance(values, SamplingParams):
        return [values] * num_prompts
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InvalidRequest(f"{name} has the wrong type", got=type(values).__name__, allowed="one value, or one per prompt")
    if len(values) != num_prompts:
        raise InvalidRequest(f"{name} and prompts differ in number", got=len(values), allowed=f"{num_prompts}, one per prompt")
    return list(values)
