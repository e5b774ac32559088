"""Incremental detokenization: the pieces joined are the decoded text; none breaks a character.

The text of a token depends on its neighbours, so each new token is decoded again together with a short window before it::

    tokens   . . . . . . [. . . . . . . . . . t]      t is the new token; the text before the window is final and forgotten
    text                 "emitted text|new  �"        a � at the end is held back: it may be the start of a character

The bytes of a character may be one token each (``<0xE4>``, in vocabularies with byte fallback). The character is final with its
last byte. ``tokenizers`` decodes a run of byte tokens to � alone if any byte of the run is wrong. A stream cannot take back the
characters before the wrong byte. So these stay, and each byte from the wrong one to the end of the run is a �. Only there does
the text differ from that of ``tokenizers``.

It knows neither requests nor stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Literal, Protocol

from hasten.core.errors import CheckpointError
from hasten.text.byte_run import ByteRun, byte_of
from hasten.text.panics import is_panic

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

    Its text is ``decode(prompt + completion)`` without the characters that the prompt completes. A leading space of the completion
    stays. A character that begins in the prompt comes with the token that completes it.
    """

    def push(self, token_id: int) -> str:
        """Add the completion's next token; return the text that became final, which may be empty."""
        ...

    def flush(self) -> str:
        """Return the text that was held back; the completion has ended."""
        ...


class WindowDetokenizer:
    """The ``Detokenizer`` for any ``tokenizers.Tokenizer``."""

    def __init__(self, tokenizer: BackendTokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._kinds: dict[int, int | Literal["skipped", "text"]] = {}
        self._window = self._last_tokens(prompt_token_ids)
        self._run: ByteRun | None = None  # None: the window's last token is no byte token
        for token_id in self._window:
            kind = self._kind(token_id)
            self._run = self._run or ByteRun() if isinstance(kind, int) else None
            if self._run is not None and isinstance(kind, int):
                self._run.push(kind)
        self._num_prompt_bytes = self._run.num_open if self._run else 0  # the prompt's text has a � for each
        # The final part of the window's text. It may end in � of the prompt that the completion will replace.
        self._emitted = self._decode(self._window[: len(self._window) - self._num_prompt_bytes])
        self._emitted += _REPLACEMENT * self._num_prompt_bytes
        self._has_held_back = False  # whether the window's text ends in a � that is not emitted

    def push(self, token_id: int) -> str:
        kind = self._kind(token_id)
        if kind == "text":
            return self._push_text(token_id)
        return "" if kind == "skipped" else self._push_byte(token_id, kind)

    def flush(self) -> str:
        return self._emit(self._decode(self._window)) if self._run is None else self._end_run(self._run)

    def _push_text(self, token_id: int) -> str:
        new_text = "" if self._run is None else self._end_run(self._run)
        self._window.append(token_id)
        text = self._decode(self._window)
        new_text += self._emit(text.removesuffix(_REPLACEMENT))
        num_held_back = len(text) - len(self._emitted)
        self._has_held_back = num_held_back > 0
        if len(self._window) > _MAX_WINDOW:
            self._shorten_window(num_held_back)
        return new_text

    def _push_byte(self, token_id: int, byte: int) -> str:
        new_text = ""
        if self._has_held_back:  # a byte token completes nothing that another kind of token began
            new_text, self._has_held_back = self._emit(self._decode(self._window)), False
        self._run = self._run or ByteRun()
        self._window.append(token_id)
        num_unseen = self._run.num_open + 1 - self._num_prompt_bytes
        state = self._run.push(byte)
        if state == "open":
            return new_text
        self._num_prompt_bytes = 0
        if state == "wrong":
            del self._window[:-_MAX_WINDOW]
            return new_text + _REPLACEMENT * num_unseen
        new_text += self._emit(self._decode(self._window))
        if len(self._window) > _MAX_WINDOW:
            self._shorten_window(0)
        return new_text

    def _end_run(self, run: ByteRun) -> str:
        """Return the � of a character that will not be completed."""
        num_unseen = run.num_open - self._num_prompt_bytes
        self._run, self._num_prompt_bytes, self._emitted = None, 0, self._decode(self._window)
        return _REPLACEMENT * num_unseen

    def _emit(self, text: str) -> str:
        """Mark ``text``, the start of the window's text, as emitted and return the new part of it."""
        if self._emitted.startswith(text):
            return ""
        start = len(self._emitted)
        if not text.startswith(self._emitted):  # the completion completed a character of the prompt
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._emitted, text, strict=False)))
        self._emitted = text
        return text[start:]

    def _shorten_window(self, num_held_back: int) -> None:
        """Drop the first tokens of a long window.

        The last ``num_held_back`` letters of its text are not emitted.
        """
        start = len(self._window) - _CONTEXT
        while start and self._kind(self._window[start]) in range(0x80, 0xC0):  # inside a character
            start -= 1
        text = self._decode(self._window[start:])
        if text:  # the text after tokens without text would be decoded as the start of a text
            del self._window[:start]
            self._emitted = text[: len(text) - num_held_back]

    def _last_tokens(self, token_ids: Sequence[int]) -> list[int]:
        """Return the tokens before the completion's first that it may depend on."""
        window: list[int] = []
        num_needed = _CONTEXT
        for token_id in reversed(token_ids):
            kind = self._kind(token_id)
            if kind == "skipped":
                continue
            window.append(token_id)
            if len(window) >= num_needed and kind == "text":
                if self._decode(window[::-1]):
                    break
                num_needed *= 2
        return window[::-1]

    def _decode(self, token_ids: Sequence[int]) -> str:
        try:
            return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise CheckpointError("the tokenizer of this checkpoint cannot decode its tokens", got=error) from error

    def _kind(self, token_id: int) -> int | Literal["skipped", "text"]:
        """Return the byte of a byte token, or which other kind the token is of."""
        if token_id not in self._kinds:
            token = self._tokenizer.id_to_token(token_id)
            if token is None or self._is_skipped(token_id):
                self._kinds[token_id] = "skipped"
            else:
                byte = byte_of(token)
                is_byte = byte is not None and self._tokenizer.decode([token_id], skip_special_tokens=False) != token
                self._kinds[token_id] = byte if byte is not None and is_byte else "text"
        return self._kinds[token_id]

    def _is_skipped(self, token_id: int) -> bool:
        """Whether this is a special token that decoding leaves out."""
        if not self._skip_special_tokens or self._tokenizer.decode([token_id], skip_special_tokens=True):
            return False
        # A lone space also decodes to nothing, because it is stripped, but it does so in either mode.
        return self._tokenizer.decode([token_id], skip_special_tokens=False) != ""
