"""``TokenStrings``: tokens as texts and bytes, for log-probabilities."""

from __future__ import annotations

import asyncio

from hasten.text.tokenizer import TextTokenizer


class TokenStrings:
    """Texts are made once per token of a request.

    A token inside a character has OpenAI's form, ``bytes:\\xe2\\x80``.
    """

    def __init__(self, tokenizer: TextTokenizer | None, *, as_ids: bool = False, skip_special_tokens: bool = True) -> None:
        """``as_ids``: texts are ``token_id:42``, as without a tokenizer."""
        self._tokenizer, self._as_ids = tokenizer, as_ids
        self._texts: dict[int, str] = {}
        is_skipped = tokenizer is not None and skip_special_tokens
        self._skipped = frozenset(tokenizer.special_token_ids.values()) if tokenizer is not None and is_skipped else frozenset()

    @classmethod
    async def open(cls, tokenizer: TextTokenizer | None, *, as_ids: bool = False, skip_special_tokens: bool = True) -> TokenStrings:
        if tokenizer is not None:
            await asyncio.to_thread(tokenizer.token_bytes, 0)  # the first call may take a second
        return cls(tokenizer, as_ids=as_ids, skip_special_tokens=skip_special_tokens)

    def text(self, token_id: int) -> str:
        found = self._texts.get(token_id)
        if found is None:
            found = self._texts[token_id] = self._text(token_id)
        return found

    def bytes_of(self, token_id: int) -> list[int] | None:
        return None if self._tokenizer is None else list(self._tokenizer.token_bytes(token_id))

    def all_bytes(self, token_id: int) -> bytes:
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token_id)

    def shown_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token adds to the text of an answer."""
        return b"" if token_id in self._skipped else self.all_bytes(token_id)

    def _text(self, token_id: int) -> str:
        if self._tokenizer is None or self._as_ids:
            return f"token_id:{token_id}"
        content = self._tokenizer.token_bytes(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
