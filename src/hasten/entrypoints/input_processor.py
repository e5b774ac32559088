"""From what a caller writes to a ``Request`` that the scheduler can run: tokenise, fill in what was left open, check all of it.

Whatever is wrong with a prompt or its settings is found here, before the engine has heard of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import InvalidRequest, PromptTooLong
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.early_exit_setup import EarlyExitSetup
from hasten.sampling.check_token_ids import check_token_ids
from hasten.text.tokenizer import TextTokenizer

Prompt = str | Mapping[str, Any]
MAX_PRIORITY = 1_000_000


@dataclass(frozen=True, slots=True)
class InputProcessor:
    tokenizer: TextTokenizer | None  # None: the checkpoint has none, and prompts are token ids
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    defaults: SamplingParams
    seeds: random.Random
    takes_priority: bool  # whether the scheduler orders by priority
    exits: EarlyExitSetup

    def request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        arrival: float,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Request:
        """Raises ``InvalidRequest`` or ``PromptTooLong``."""
        _check_order(priority, cache_salt)
        if priority and not self.takes_priority:
            raise InvalidRequest(
                "this engine does not order requests by priority",
                got=f"priority={priority}",
                allowed="0",
                remedy='Load the model with scheduling_policy="priority"',
            )
        token_ids = self.encode(prompt)
        params = self._complete(params or self.defaults, len(token_ids))
        params, exit_layer = self.exits.resolve(params, token_ids)
        check_token_ids(params, self.vocab_size)
        return Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            eos_token_ids=self.eos_token_ids,
            priority=priority,
            arrival=arrival,
            exit_layer=exit_layer,
            cache_salt=cache_salt,
        )

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids, checked against the vocabulary and the context."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InvalidRequest(
                    "this checkpoint has no tokenizer, so a prompt cannot be text",
                    remedy='Pass {"prompt_token_ids": [...]}',
                )
            token_ids: Sequence[int] = self._text_ids(prompt)
        else:
            token_ids = _given_ids(prompt)
        if not token_ids:
            raise InvalidRequest("the prompt is empty", allowed="at least one token")
        wrong = [token for token in token_ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise InvalidRequest(
                f"{len(wrong)} prompt token ids are outside the vocabulary",
                got=", ".join(map(str, wrong[:8])),
                allowed=f"0 to {self.vocab_size - 1}",
                remedy="Tokenise the prompt with this model's tokenizer",
            )
        if len(token_ids) >= self.max_model_len:
            raise PromptTooLong(
                "the prompt leaves no room for an answer in the context",
                got=f"{len(token_ids)} tokens",
                allowed=f"up to {self.max_model_len - 1}",
                remedy="Shorten the prompt, or raise max_model_len",
            )
        return tuple(token_ids)

    def _text_ids(self, text: str, *, special: bool = True) -> list[int]:
        assert self.tokenizer is not None
        if not _is_unicode(text):
            raise InvalidRequest("this is not Unicode text", got=repr(text)[:80], remedy="Half of a surrogate pair was cut off")
        return self.tokenizer.encode(text, special=special)

    def _complete(self, params: SamplingParams, num_prompt: int) -> SamplingParams:
        """Every open setting given its value: the length, the seed, bad words as token ids."""
        changes: dict[str, Any] = {}
        if params.max_tokens is None:
            changes["max_tokens"] = max(self.max_model_len - num_prompt, params.min_tokens)
        if params.seed is None:
            changes["seed"] = self.seeds.getrandbits(63)
        if params.beam_width is not None and params.stop:
            raise InvalidRequest(
                "stop strings do not end beams",
                got=f"stop={list(params.stop)!r} with beam_width={params.beam_width}",
                allowed="stop_token_ids with beam_width",
                remedy="Use stop_token_ids, or sample without beam_width",
            )
        if (params.stop or params.bad_words) and self.tokenizer is None:
            raise InvalidRequest(
                "stop and bad_words need a tokenizer, which this checkpoint has not",
                remedy="Use stop_token_ids and bad_words_ids",
            )
        if params.bad_words and self.tokenizer is not None:
            ids = [self._text_ids(text, special=False) for word in params.bad_words for text in (word, " " + word)]
            changes["bad_words_ids"] = params.bad_words_ids + tuple(dict.fromkeys(tuple(i) for i in ids if i))
            changes["bad_words"] = ()
        return params.replace(**changes) if changes else params


def _check_order(priority: object, cache_salt: object) -> None:
    """What the scheduler computes with must be what it takes it for, or every request would suffer."""
    if type(priority) is not int or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest("priority is out of range", got=repr(priority)[:40], allowed=f"-{MAX_PRIORITY} to {MAX_PRIORITY}")
    if not isinstance(cache_salt, str) or not _is_unicode(cache_salt):
        raise InvalidRequest("cache_salt is not a text", got=repr(cache_salt)[:80], allowed="any Unicode text")


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded: JSON may carry halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _given_ids(prompt: object) -> Sequence[int]:
    allowed = 'text or {"prompt_token_ids": [token ids]}'
    if not isinstance(prompt, Mapping) or set(prompt) != {"prompt_token_ids"}:
        raise InvalidRequest("this is not a prompt", got=repr(prompt)[:80], allowed=allowed)
    token_ids = prompt["prompt_token_ids"]
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, str) or not all(type(i) is int for i in token_ids):
        raise InvalidRequest("prompt_token_ids are not whole numbers", got=repr(token_ids)[:80], allowed=allowed)
    return token_ids
