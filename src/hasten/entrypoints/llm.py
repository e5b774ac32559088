"""``LLM``: load a model, generate, chat, stream, score. The whole engine runs in the caller's thread."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidRequest
from hasten.core.output import Delta, RequestOutput
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.score_output import Choice, ScoreOutput
from hasten.entrypoints.build_engine import build_engine
from hasten.entrypoints.input_processor import Prompt
from hasten.entrypoints.progress import generation_bar
from hasten.entrypoints.scoring import Continuation, Scoring

Messages = Sequence[Mapping[str, Any]]


class LLM:
    """One model and its engine. Not to be shared between threads; ``AsyncLLM`` is for that.

    ``options`` are the fields of ``EngineOptions``. Raises ``HastenError`` if the model cannot be loaded or does not fit.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._loaded = build_engine(str(model), EngineOptions.from_dict(options))
        self.engine = self._loaded.engine
        self._scoring = Scoring(self._loaded.input_processor, self.engine.continuations())
        self._ids = itertools.count()
        # What has come for each request that somebody here waits for: several streams may be open at a time.
        self._inboxes: dict[str, deque[Delta]] = {}

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer (``TextTokenizer``), or None."""
        return self._loaded.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """What is used where no settings are given: the checkpoint's ``generation_config.json``."""
        return self._loaded.input_processor.defaults

    def describe(self) -> dict[str, Any]:
        """What runs, with which kernels, in how much memory."""
        return dict(self._loaded.description)

    def reset_prefix_cache(self) -> None:
        """Forget every cached block that no running request holds."""
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
        """One output per prompt, in order. A prompt is text or ``{"prompt_token_ids": [...]}``.

        Raises ``InvalidRequest`` before anything runs if any prompt or setting is wrong.
        """
        listed: Sequence[Prompt] = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        each = _per_prompt(sampling_params, len(listed), "sampling_params")
        ranks = _per_prompt(priorities, len(listed), "priorities")
        requests = [
            self._request(prompt, params, priority=rank or 0, cache_salt=cache_salt)
            for prompt, params, rank in zip(listed, each, ranks, strict=True)
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
        **template: Any,
    ) -> list[RequestOutput]:
        """Completion one conversation, or several. ``template`` goes to the checkpoint's chat template."""
        several = messages and not isinstance(messages[0], Mapping)
        conversations: Any = messages if several else [messages]
        prompts = [self._chat_prompt(conversation, tools, template) for conversation in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, priorities=priorities, cache_salt=cache_salt)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_salt: str = "") -> Iterator[Delta]:
        """Deltas as they come; the last one carries the whole output. Closing the iterator ends the request."""
        return self._stream(self._request(prompt, sampling_params, cache_salt=cache_salt))

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Any] | None = None,
        cache_salt: str = "",
        **template: Any,
    ) -> Iterator[Delta]:
        """``stream`` of a conversation, rendered by the checkpoint's chat template."""
        return self.stream(self._chat_prompt(messages, tools, template), sampling_params, cache_salt=cache_salt)

    def score(
        self,
        prompt: Prompt,
        continuations: Sequence[Continuation],
        sampling_params: SamplingParams | None = None,
        *,
        cache_salt: str = "",
    ) -> list[ScoreOutput]:
        """How likely the model finds each continuation after the prompt, in order. The prompt is computed once.

        A continuation is text, which begins where the prompt ends, or ``{"token_ids": [...]}``. Of the settings only an exit rule
        counts: none, layer, texts or entropy. May be called while streams are open. Raises ``InvalidRequest`` before anything runs,
        and ``CapacityError`` if the KV pool has no room beside what runs.
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
        """The likeliest of the choices after the prompt: by log-probability per token (``mean``) or as a whole (``sum``).

        As ``score`` in all else.
        """
        return self._scoring.choose(prompt, choices, sampling_params, normalize=normalize, cache_salt=cache_salt)

    def _chat_prompt(self, messages: Messages, tools: Sequence[Any] | None, template: Mapping[str, Any]) -> Prompt:
        if self._loaded.tokenizer is None:
            raise InvalidRequest("this checkpoint has no tokenizer, so it cannot chat", remedy="Use generate with token ids")
        return {"prompt_token_ids": self._loaded.tokenizer.chat(messages, tools=tools, **template)}

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


def _per_prompt(values: Any, count: int, name: str) -> list[Any]:
    """One value for each prompt from one value for all, or from a list that must be as long."""
    if values is None or isinstance(values, SamplingParams):
        return [values] * count
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InvalidRequest(f"{name} has the wrong type", got=type(values).__name__, allowed="one value, or one per prompt")
    if len(values) != count:
        raise InvalidRequest(f"{name} and prompts differ in number", got=len(values), allowed=f"{count}, one per prompt")
    return list(values)
