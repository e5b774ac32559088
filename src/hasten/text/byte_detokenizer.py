"""``ByteDetokenizer``: incremental detokenization for byte-level BPE (GPT-2, Llama 3, Qwen).

Every token of such a vocabulary stands for fixed bytes, whatever its neighbours are. So each token is looked up once, and only a
character whose bytes lie in several tokens has to wait. ``detokenizer`` has the general case.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from hasten.text.detokenizer import BackendTokenizer

_MAX_INCOMPLETE = 3  # bytes of a character that is not complete


def _byte_decoder() -> dict[str, int]:
    """The byte of each letter in byte-level vocabularies (Radford et al., 2019).

    Printable bytes are their own letters; the others are the letters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_decoder()


class TokenBytes(dict[int, bytes]):
    """The bytes of each token of a byte-level vocabulary, computed at first use."""

    def __init__(self, tokenizer: BackendTokenizer, skip_special_tokens: bool) -> None:
        super().__init__()
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens

    def __missing__(self, token_id: int) -> bytes:
        self[token_id] = self._bytes_of(token_id)
        return self[token_id]

    def _bytes_of(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._skip_special_tokens and not self._tokenizer.decode([token_id], skip_special_tokens=True):
            return b""
        try:
            return bytes(_BYTES[letter] for letter in token)
        except KeyError:  # an added token is plain text and may have letters outside the alphabet
            return token.encode()


class ByteDetokenizer:
    """The ``Detokenizer`` for byte-level vocabularies."""

    def __init__(self, token_bytes: Mapping[int, bytes], prompt_token_ids: Sequence[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        prompt_end = b""
        for token_id in reversed(prompt_token_ids):
            prompt_end = token_bytes[token_id] + prompt_end
            if len(prompt_end) >= _MAX_INCOMPLETE:
                break
        self._decoder.decode(prompt_end)
        # What the decoded prompt alone ends in, if it ends inside a character: � for its bytes.
        self._prompt_end = self._decoder.getstate()[0].decode(errors="replace")

    def push(self, token_id: int) -> str:
        return self._without_prompt(self._decoder.decode(self._token_bytes[token_id]))

    def flush(self) -> str:
        return self._without_prompt(self._decoder.decode(b"", final=True))

    def _without_prompt(self, text: str) -> str:
        """Remove the � that the decoded prompt already ends in, if the completion did not make it a character."""
        if self._prompt_end and text:
            prompt_end, self._prompt_end = self._prompt_end, ""
            return text.removeprefix(prompt_end)
        return text
