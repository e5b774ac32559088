"""Incremental detokenization: the pieces joined are the decoded text; none breaks a character.

The text of a token depends on its neighbours, so each new token is decoded again together with a short window before it::

    tokens   . . . . . . [. . . . . . . . . . t]      t is the new token; the text before the window is final and forgotten
    text                 "emitted text|new  �"        a � at the end is held back: it may be the start of a character

A byte token (``<0xE4>``, in vocabularies with byte fallback) emits nothing before its run of byte tokens ends. A wrong byte
at the end of the run would turn the full run into �.

It knows neither requests nor stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Literal, Protocol

# A character has at most four bytes and a token at least one, so no open character reaches back to the window's first tokens.
# Only these decode differently without the tokens before them (a stripped space, half a character).
_CONTEXT = 8
_MAX_WINDOW = 3 * _CONTEXT
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class BackendTokenizer(Protocol):
    """The methods of ``tokenizers.Tokenizer`` that detokenizers call."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def id_to_token(self, id: int) -> str | None:
        """None for an id without a token: decoding leaves it out."""
        ...


class Detokenizer(Protocol):
    """Decodes one completion, token by token.

    Its text is ``decode(prompt + completion)`` without the part that it shares with ``decode(prompt)``. A leading space of the
    completion stays. A character that begins in the prompt comes with the token that completes it.
    """

    def push(self, token_id: int) -> str:
        """Add the completion's next token; return the text that became final, which may be empty."""
        ...

    def flush(self) -> str:
        """Return the text that was held back; the completion has ended."""
        ...


class WindowDetokenizer:
    """The ``Detokenizer`` for any tokenizer.

    ``tokenizer`` is a ``tokenizers.Tokenizer`` or a fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: BackendTokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer: BackendTokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._skip_special_tokens = skip_special_tokens
        self._kinds: dict[int, Literal["skipped", "byte", "text"]] = {}
        self._window: list[int] = []
        for token_id in reversed(prompt_token_ids):
            kind = self._kind(token_id)
            if kind == "skipped":
                continue
            self._window.insert(0, token_id)
            if len(self._window) >= _CONTEXT and kind != "byte":
                break
        # The final part of the window's text. It may end in a � of the prompt that the completion will replace.
        self._emitted = self._decode(self._window)

    def push(self, token_id: int) -> str:
        kind = self._kind(token_id)
        if kind == "skipped":
            return ""
        self._window.append(token_id)
        if kind == "byte":
            return ""
        text = self._decode(self._window)
        new_text = self._emit(text.removesuffix(_REPLACEMENT))
        if len(self._window) > _MAX_WINDOW:
            num_held_back = len(text) - len(self._emitted)
            del self._window[:-_CONTEXT]
            text = self._decode(self._window)
            self._emitted = text[: len(text) - num_held_back]
        return new_text

    def flush(self) -> str:
        return self._emit(self._decode(self._window))

    def _emit(self, text: str) -> str:
        """Mark ``text``, the start of the window's text, as emitted and return the new part of it."""
        if self._emitted.startswith(text):
            return ""
        start = len(self._emitted)
        if not text.startswith(self._emitted):  # the completion completed a character of the prompt
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._emitted, text, strict=False)))
        self._emitted = text
        return text[start:]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _kind(self, token_id: int) -> Literal["skipped", "byte", "text"]:
        if token_id not in self._kinds:
            token = self._tokenizer.id_to_token(token_id)
            if token is None or self._is_skipped(token_id):
                self._kinds[token_id] = "skipped"
            else:
                is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
                self._kinds[token_id] = "byte" if is_byte else "text"
        return self._kinds[token_id]

    def _is_skipped(self, token_id: int) -> bool:
        """Whether this is a special token that decoding leaves out."""
        if not self._skip_special_tokens or self._tokenizer.decode([token_id], skip_special_tokens=True):
            return False
        # A lone space also decodes to nothing, because it is stripped, but it does so in either mode.
        return self._tokenizer.decode([token_id], skip_special_tokens=False) != ""
