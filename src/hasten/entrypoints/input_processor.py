"""``InputProcessor``: from a prompt and its settings to a ``Request``: tokenise, complete, check.

Every fault of a prompt or of its settings is raised here, or by ``LoadedEngine.admit``, before the request reaches the engine.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidRequest, PromptTooLong, printable, show
from hasten.core.request import PrefixPin, Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.core.unicode_text import is_unicode
from hasten.entrypoints.answer_parsers import thought_marks
from hasten.entrypoints.exit_rules import ExitRules
from hasten.entrypoints.guides import Guides
from hasten.entrypoints.model_info import ModelInfo
from hasten.entrypoints.request_limits import check_pins, check_request_limits
from hasten.entrypoints.soft_prompts import SoftPrompts
from hasten.sampling.check_token_ids import check_token_ids
from hasten.text.tokenizer import TextTokenizer

Prompt = str | Mapping[str, Any]
MAX_PRIORITY = 1_000_000
MAX_SALT = 1024  # characters of a cache salt, which is hashed with every block
MIN_CHARS_PER_TOKEN = 64  # of the bound on the length of a text: most vocabularies have no longer token


@dataclass(frozen=True, slots=True)
class InputProcessor:
    tokenizer: TextTokenizer | None  # None: the checkpoint has none, and prompts are token ids
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    defaults: SamplingParams
    seeds: random.Random
    options: EngineOptions
    exit_rules: ExitRules
    soft_prompts: SoftPrompts
    guides: Guides

    @classmethod
    def of(cls, info: ModelInfo, tokenizer: TextTokenizer | None) -> InputProcessor:
        """Return the input processor of a loaded model, which may be in another process."""
        return cls(
            tokenizer=tokenizer,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            eos_token_ids=info.eos_token_ids,
            defaults=info.defaults,
            seeds=random.Random(info.options.seed),
            options=info.options,
            exit_rules=ExitRules(info.exits),
            soft_prompts=SoftPrompts(),
            guides=Guides(tokenizer, info.vocab_size, info.eos_token_ids, thought_marks(info.options, tokenizer)),
        )

    def request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        arrival: float,
        priority: int = 0,
        cache_salt: str = "",
        pins: Sequence[PrefixPin] = (),
        soft_prompt: SoftPrompt | None = None,
        use_result_cache: bool = True,
    ) -> Request:
        """Return a request for ``LoadedEngine.admit``. Raises ``InvalidRequest`` or ``PromptTooLong``."""
        _check_priority_and_salt(priority, cache_salt)
        if priority and self.options.scheduling_policy != "priority":
            raise InvalidRequest(
                "this engine does not order requests by priority",
                got=f"priority={priority}",
                allowed="0",
                remedy='Load the model with scheduling_policy="priority"',
            )
        params = self.check_params(params)
        check_request_limits(params, self.options)
        virtual_token_ids = self.soft_prompts.virtual_token_ids(soft_prompt)
        token_ids = self.encode(prompt, len(virtual_token_ids))
        is_determined = params.seed is not None or params.is_seedless
        params = self._complete(params, len(virtual_token_ids) + len(token_ids))
        params, exit_layer = self.exit_rules.resolve(params)
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
            is_determined=is_determined,
            pins=check_pins(pins, len(token_ids), len(virtual_token_ids), self.options),
            use_result_cache=use_result_cache,
            virtual_token_ids=virtual_token_ids,
            soft_prompt_digest="" if soft_prompt is None else soft_prompt.digest,
        )

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, template_kwargs: Mapping[str, Any]
    ) -> Prompt:
        """Return the prompt of a conversation, rendered by the checkpoint's chat template."""
        return {"prompt_token_ids": self.encode_chat(self.render_chat(messages, tools, template_kwargs))}

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, template_kwargs: Mapping[str, Any]
    ) -> str:
        """Return the text of a conversation. Raises ``InvalidRequest``."""
        if self.tokenizer is None:
            raise InvalidRequest(
                "this checkpoint has no tokenizer, so it cannot chat", remedy="Use generate or stream with token ids"
            )
        text = self.tokenizer.render_chat(messages, tools=tools, **template_kwargs)
        self.check_text(text, "conversation")
        return text

    def encode_chat(self, text: str) -> Sequence[int]:
        """Return the token ids for the text of a conversation."""
        assert self.tokenizer is not None, "the tokenizer rendered the text"
        return self.tokenizer.encode(text, add_special_tokens=False)

    def check_params(self, params: object) -> SamplingParams:
        """Return the settings, or the defaults for None.

        Raises ``InvalidRequest`` for an object of another class.
        """
        if params is None:
            return self.defaults
        if not isinstance(params, SamplingParams):
            allowed = "SamplingParams, or None for the defaults"
            raise InvalidRequest("sampling_params has the wrong type", got=type(params).__name__, allowed=allowed)
        return params

    def encode(self, prompt: Prompt, num_virtual_tokens: int = 0) -> tuple[int, ...]:
        """Return the token ids of a prompt, which stands after ``num_virtual_tokens`` positions.

        Raises ``InvalidRequest`` or ``PromptTooLong``.
        """
        if isinstance(prompt, str):
            token_ids = tuple(self.tokenizer_for(prompt, "prompt", "prompt_token_ids").encode(prompt))
        else:
            token_ids = read_token_ids(prompt, "prompt", "prompt_token_ids", max_tokens=self.max_model_len - 1)
        if not token_ids:
            raise InvalidRequest("the prompt is empty", allowed="at least one token")
        if num_virtual_tokens + len(token_ids) >= self.max_model_len:
            virtual = f" after {num_virtual_tokens} virtual tokens" if num_virtual_tokens else ""
            raise PromptTooLong(
                "the prompt leaves no room for an answer in the context",
                got=f"{len(token_ids)} tokens{virtual}",
                allowed=f"up to {self.max_model_len - 1 - num_virtual_tokens}",
                remedy="Shorten the prompt, or raise max_model_len",
            )
        self.check_vocabulary(token_ids, "prompt")
        return token_ids

    def tokenizer_for(self, text: str, name: str, key: str) -> TextTokenizer:
        """Return the tokenizer. Raises ``InvalidRequest`` if there is none, and as ``check_text``.

        ``name`` is the caller's word for the text; ``key`` is where the caller may pass token ids instead.
        """
        if self.tokenizer is None:
            raise InvalidRequest(f"this checkpoint has no tokenizer, so a {name} cannot be text", remedy=f'Pass {{"{key}": [...]}}')
        self.check_text(text, name)
        return self.tokenizer

    def check_text(self, text: str, name: str) -> None:
        """Raise ``PromptTooLong`` for a text that cannot fit the context, before it is tokenised.

        Tokenising takes seconds per megabyte. Raises ``InvalidRequest`` for half of a surrogate pair.
        """
        if self.tokenizer is not None and len(text) > MIN_CHARS_PER_TOKEN * self.max_model_len:
            per_token = max(MIN_CHARS_PER_TOKEN, self.tokenizer.max_chars_per_token)
            if len(text) > per_token * self.max_model_len:
                raise PromptTooLong(
                    f"the {name} is too long for the context, whatever its tokens are",
                    got=f"{len(text)} characters",
                    allowed=f"up to {per_token * self.max_model_len}, {self.max_model_len} tokens of {per_token} characters",
                    remedy=f"Shorten the {name}, or raise max_model_len",
                )
        if not is_unicode(text):
            raise InvalidRequest(
                f"the {name} is not Unicode text",
                got=show(text),
                remedy="Half of a surrogate pair was cut off, or bytes were no UTF-8",
            )

    def check_vocabulary(self, token_ids: Iterable[int], name: str) -> None:
        """Raise ``InvalidRequest`` if token ids of ``name`` are outside the vocabulary."""
        wrong = sorted({token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size})
        if wrong:
            raise InvalidRequest(
                f"{len(wrong)} token ids of the {name} are outside the vocabulary",
                got=format_first(wrong),
                allowed=f"0 to {self.vocab_size - 1}",
                remedy=f"Tokenise the {name} with this model's tokenizer",
            )

    def _complete(self, params: SamplingParams, num_prompt_tokens: int) -> SamplingParams:
        """Set the length and the seed if they are open, and turn texts of special tokens into ids."""
        changes: dict[str, Any] = {}
        if params.max_tokens is None:
            changes["max_tokens"] = max(self.max_model_len - num_prompt_tokens, params.min_tokens)
        if params.seed is None:
            changes["seed"] = self.seeds.getrandbits(63)
        changes |= self._resolve_texts(params)
        if params.beam_width is not None and changes.get("stop", params.stop):
            raise InvalidRequest(
                "stop strings do not end beams",
                got=f"stop={list(params.stop)!r} with beam_width={params.beam_width}",
                allowed="stop_token_ids with beam_width",
                remedy="Use stop_token_ids, or sample without beam_width",
            )
        return params.replace(**changes) if changes else params

    def _resolve_texts(self, params: SamplingParams) -> dict[str, Any]:
        """Return the settings that change because a stop string or a bad word is a special token.

        Such a token never appears in the text while special tokens are skipped, so its id counts instead.
        """
        if not params.stop and not params.bad_words:
            return {}
        if self.tokenizer is None:
            raise InvalidRequest(
                "stop and bad_words need a tokenizer, which this checkpoint has not",
                remedy="Use stop_token_ids and bad_words_ids",
            )
        special = self.tokenizer.special_token_ids if params.skip_special_tokens else {}
        changes: dict[str, Any] = {}
        if stop_ids := tuple(special[text] for text in params.stop if text in special):
            changes["stop"] = tuple(text for text in params.stop if text not in special)
            changes["stop_token_ids"] = tuple(dict.fromkeys(params.stop_token_ids + stop_ids))
        for text in changes.get("stop", params.stop):
            if inside := [token for token in special if token in text]:
                warnings.warn(
                    f"the stop string {text!r} has the special token {inside[0]} in it, which skip_special_tokens leaves out "
                    "of the text. Pass the token alone, or set skip_special_tokens=False.",
                    stacklevel=2,
                )
        if word_ids := tuple((special[text],) for text in params.bad_words if text in special):
            changes["bad_words_ids"] = params.bad_words_ids + word_ids
        if params.bad_words:  # made here, so that no step of the engine waits for it
            self.tokenizer.bad_words(params.bad_words, params.skip_special_tokens)
        return changes


def read_token_ids(value: object, name: str, key: str, *, max_tokens: int) -> tuple[int, ...]:
    """Return the token ids of ``{key: [...]}``.

    Raises ``PromptTooLong`` for more than ``max_tokens``, and ``InvalidRequest`` for anything else.
    """
    allowed = f'text or {{"{key}": [token ids]}}'
    if not isinstance(value, Mapping) or list(value) != [key]:
        raise InvalidRequest(f"this is not a {name}", got=show(value), allowed=allowed)
    token_ids = value[key]
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, (str, bytes, bytearray)):
        raise InvalidRequest(f"{key} are not whole numbers", got=show(token_ids), allowed=allowed)
    if len(token_ids) > max_tokens:  # before a million numbers are looked at
        raise PromptTooLong(
            f"the {name} does not fit the context",
            got=f"{len(token_ids)} tokens",
            allowed=f"up to {max_tokens}",
            remedy=f"Shorten the {name}, or raise max_model_len",
        )
    if not all(type(token_id) is int for token_id in token_ids):
        raise InvalidRequest(f"{key} are not whole numbers", got=show(token_ids), allowed=allowed)
    return tuple(token_ids)


def format_first(values: Sequence[object]) -> str:
    """Return the first eight values as a list in text."""
    return ", ".join(map(printable, values[:8])) + (", ..." if len(values) > 8 else "")


def _check_priority_and_salt(priority: object, cache_salt: object) -> None:
    """Raise ``InvalidRequest`` for values that would break the scheduler for all requests."""
    if type(priority) is not int or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest("priority is out of range", got=show(priority), allowed=f"-{MAX_PRIORITY} to {MAX_PRIORITY}")
    check_salt(cache_salt)


def check_salt(cache_salt: object) -> None:
    """Raise ``InvalidRequest`` for anything but a text."""
    if not isinstance(cache_salt, str) or len(cache_salt) > MAX_SALT or not is_unicode(cache_salt):
        raise InvalidRequest(
            "cache_salt is not a text", got=show(cache_salt), allowed=f"Unicode text of up to {MAX_SALT} characters"
        )
