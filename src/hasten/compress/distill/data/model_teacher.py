"""``ModelTeacher``: a loaded model as a ``TextTeacher``, and the speed that it wrote with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.compress.distill.data.text_teacher import LabelRequest, TeacherPrompt, TeacherText, TextRequest
from hasten.core.errors import HastenError, InvalidOption
from hasten.core.output import RequestOutput
from hasten.prompts.optimize import model_settings

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

BATCHES = 4  # sequences per place of the engine in one call, so that short texts make room for others


@dataclass(slots=True)
class TeacherFigures:
    """What a teacher computed."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompts, from the prefix cache
    num_output_tokens: int = 0
    seconds: float = 0.0  # of writing
    num_choices: int = 0
    choice_seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.num_requests:,} requests"]
        if self.num_prompt_tokens:
            share = self.num_cached_tokens / self.num_prompt_tokens
            parts.append(f"{self.num_prompt_tokens:,} prompt tokens ({share:.0%} from the prefix cache)")
        if self.seconds:
            rate = self.num_output_tokens / self.seconds
            parts.append(f"{self.num_output_tokens:,} output tokens in {self.seconds:.1f} s, {rate:,.1f} tokens/s")
        if self.num_choices:
            parts.append(f"{self.num_choices:,} choices of labels in {self.choice_seconds:.1f} s")
        return " | ".join(parts)


class ModelTeacher:
    """A loaded model. Equal beginnings of prompts are computed once, by its prefix cache.

    ``chat``: a prompt that is a text becomes a user's message; messages are always rendered by the chat template. Raises
    ``InvalidOption`` for a model without a tokenizer, or without a chat template where one is needed.
    """

    def __init__(
        self, llm: LLM, *, chat: bool = False, max_num_seqs: int = 64, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if llm.tokenizer is None:
            raise InvalidOption("this checkpoint has no tokenizer, so it cannot write texts", remedy="Use another teacher")
        if chat:
            llm.tokenizer.render_chat([{"role": "user", "content": "?"}])  # the error comes before the work
        self._llm, self._chat, self._clock = llm, chat, clock
        self._max_model_len = int(llm.describe()["max_model_len"])
        self.batch_size = BATCHES * max_num_seqs
        self.figures = TeacherFigures()

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**model_settings(self._llm), "chat": self._chat, "max_model_len": self._max_model_len}

    def fits(self, request: TextRequest | LabelRequest) -> bool:
        num_more = 1
        if isinstance(request, LabelRequest):
            num_more = max(len(self._llm.tokenizer.encode_fragment(label)) for label in request.labels) + 1
        elif request.params.max_tokens is not None:
            num_more = request.params.max_tokens
        return len(self._token_ids(request.prompt)) + num_more <= self._max_model_len

    def write(self, requests: Sequence[TextRequest]) -> list[tuple[TeacherText, ...]]:
        begin = self._clock()
        found: dict[int, RequestOutput] = {}
        chats = {i: messages for i, request in enumerate(requests) if (messages := self._messages(request.prompt))}
        plain = [i for i in range(len(requests)) if i not in chats]
        if plain:
            prompts: list[Any] = [requests[i].prompt for i in plain]
            outputs = self._llm.generate(prompts, [requests[i].params for i in plain], use_tqdm=False)
            found |= dict(zip(plain, outputs, strict=True))
        if chats:
            params = [requests[i].params for i in chats]
            found |= dict(zip(chats, self._llm.chat(list(chats.values()), params, use_tqdm=False), strict=True))
        self.figures.seconds += self._clock() - begin
        return [self._read(found[i]) for i in range(len(requests))]

    def choose(self, requests: Sequence[LabelRequest]) -> list[tuple[float, ...]]:
        """Return the probabilities by ``LLM.choose``, in total over the tokens of a label."""
        begin, found = self._clock(), []
        for request in requests:
            prompt: Any = request.prompt
            labels = list(request.labels)
            if self._messages(prompt):
                prompt = {"prompt_token_ids": self._token_ids(prompt)}
            elif isinstance(prompt, str) and not prompt[-1:].isspace():
                labels = [f" {label}" for label in labels]
            found.append(self._llm.choose(prompt, labels, normalize="sum").probabilities)
        self.figures.num_choices += len(requests)
        self.figures.choice_seconds += self._clock() - begin
        return found

    def _messages(self, prompt: TeacherPrompt) -> list[Mapping[str, str]]:
        """Return the conversation that a prompt is; empty if the model gets it as it is."""
        if isinstance(prompt, tuple):
            return list(prompt)
        return [{"role": "user", "content": prompt}] if self._chat and isinstance(prompt, str) else []

    def _token_ids(self, prompt: TeacherPrompt) -> Sequence[int]:
        if messages := self._messages(prompt):
            return list(self._llm.tokenizer.apply_chat_template(messages))
        if isinstance(prompt, str):
            return list(self._llm.tokenizer.encode(prompt))
        assert isinstance(prompt, Mapping)
        return list(prompt["prompt_token_ids"])

    def _read(self, output: RequestOutput) -> tuple[TeacherText, ...]:
        if output.error is not None:
            raise HastenError(f"a request to the teacher failed: {output.error}")
        figures, metrics = self.figures, output.metrics
        figures.num_requests += 1
        figures.num_prompt_tokens += metrics.num_prompt_tokens
        figures.num_cached_tokens += metrics.num_cached_tokens
        figures.num_output_tokens += metrics.num_output_tokens
        return tuple(
            TeacherText(
                text=completion.text,
                finish_reason=str(completion.finish_reason),
                num_tokens=len(completion.token_ids),
                mean_logprob=(
                    None
                    if completion.cumulative_logprob is None
                    else completion.cumulative_logprob / max(1, len(completion.token_ids))
                ),
                reasoning=completion.reasoning,
            )
            for completion in output.outputs
        )
