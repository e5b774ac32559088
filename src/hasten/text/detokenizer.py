"""From tokens to text, a token at a time: the pieces joined are the decoded whole, and no piece breaks a character.

What a token reads as depends on its neighbours, so a short window of them is decoded again for each new one::

    tokens   . . . . . . [. . . . . . . . . . t]      t the new token; before the window all is final and forgotten
    text                 "seen already|new  �"        a last � is held back: it may be the start of a character

A byte token (``<0xE4>``, of vocabularies that fall back to bytes) says nothing before its run of byte tokens ends, for a
wrong byte at the end of the run makes � of all of it.

It knows no request and no stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

# A character has at most four bytes and a token at least one, so no character that is still open reaches back to the window's
# first tokens, which alone read differently without those before them (a stripped space, half a character).
_CONTEXT = 8
_LIMIT = 3 * _CONTEXT
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenReader(Protocol):
    """What a ``tokenizers.Tokenizer`` can do."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def id_to_token(self, id: int) -> str | None:
        """None for an id without a token: decoding leaves it out."""
        ...


class Detokenizer(Protocol):
    """From the tokens of one answer to its text."""

    def push(self, token_id: int) -> str:
        """Takes the answer's next token; returns the text that became final, often of one token, sometimes none."""
        ...

    def flush(self) -> str:
        """The answer is over: returns what was held back."""
        ...


class WindowDetokenizer:
    """The text of one answer, whatever its tokens are.

    ``tokenizer`` is a ``tokenizers.Tokenizer``, a fast tokenizer of transformers, or anything that reads like the former.
    The text is ``decode(prompt + answer)`` without what it has in common with ``decode(prompt)``: a leading space of the answer
    stays, and a character that the prompt left half done comes with the token that completes it.
    """

    def __init__(self, tokenizer: TokenReader, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer: TokenReader = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._skip_special_tokens = skip_special_tokens
        self._kinds: dict[int, tuple[bool, bool]] = {}  # what each token was found to be: (it reads, it is a byte)
        self._window: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if not self._reads(token_id):
                continue
            self._window.insert(0, token_id)
            if len(self._window) >= _CONTEXT and not self._is_byte(token_id):
                break
        # What is final of the window's text. It may end in a � of the prompt that the answer will yet replace.
        self._seen = self._decode(self._window)

    def push(self, token_id: int) -> str:
        """Takes the answer's next token; returns the text that became final, often of one token, sometimes none."""
        kind = self._kinds.get(token_id)
        if kind is None:
            kind = self._kinds[token_id] = (self._reads(token_id), self._is_byte(token_id))
        reads, is_byte = kind
        if not reads:
            return ""
        self._window.append(token_id)
        if is_byte:
            return ""
        text = self._decode(self._window)
        new = self._advance(text.removesuffix(_REPLACEMENT))
        if len(self._window) > _LIMIT:
            held = len(text) - len(self._seen)
            del self._window[:-_CONTEXT]
            text = self._decode(self._window)
            self._seen = text[: len(text) - held]
        return new

    def flush(self) -> str:
        """The answer is over: returns what was held back."""
        return self._advance(self._decode(self._window))

    def _advance(self, final: str) -> str:
        if self._seen.startswith(final):
            return ""
        known = len(self._seen)
        if not final.startswith(self._seen):  # the answer completed what the prompt left half done
            known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._seen, final, strict=False)))
        self._seen = final
        return final[known:]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _reads(self, token_id: int) -> bool:
        """False for tokens that decoding leaves out: special ones that are skipped, and ids without a token."""
        if self._tokenizer.id_to_token(token_id) is None:
            return False
        if not self._skip_special_tokens or self._tokenizer.decode([token_id], skip_special_tokens=True):
            return True
        # Empty: a skipped token, or a space that is stripped only because nothing stands before it.
        return not self._tokenizer.decode([token_id], skip_special_tokens=False)

    def _is_byte(self, token_id: int) -> bool:
        token = self._tokenizer.id_to_token(token_id)
        return token is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
