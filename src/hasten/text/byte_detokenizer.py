"""From tokens to text where every token stands for bytes of its own (byte-level BPE: GPT-2, Llama 3, Qwen).

No neighbour changes what such a token reads as, so it is looked up once and never decoded again; only a character whose bytes
lie in several tokens waits for the last of them. ``detokenizer`` has the general case.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from hasten.text.detokenizer import TokenReader

_OPEN = 3  # bytes of a character that may be there while it is not complete
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _bytes_of_letters() -> dict[str, int]:
    """The alphabet of byte-level vocabularies (Radford et al., 2019): bytes that print are themselves, the others U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _bytes_of_letters()


class TokenBytes(dict[int, bytes]):
    """What each token of a byte-level vocabulary stands for, found when it is first asked for. All answers share one."""

    def __init__(self, tokenizer: TokenReader, skip_special_tokens: bool) -> None:
        super().__init__()
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens

    def __missing__(self, token_id: int) -> bytes:
        found = self[token_id] = self._find(token_id)
        return found

    def _find(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._skip_special_tokens and not self._tokenizer.decode([token_id], skip_special_tokens=True):
            return b""
        try:
            return bytes(_BYTES[letter] for letter in token)
        except KeyError:  # an added token is its own text, and may have letters of another alphabet
            return token.encode()


class ByteDetokenizer:
    """The text of one answer: ``decode(prompt + answer)`` without what it has in common with ``decode(prompt)``."""

    def __init__(self, token_bytes: Mapping[int, bytes], prompt_token_ids: Sequence[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        end = b""
        for token_id in reversed(prompt_token_ids):
            end = token_bytes[token_id] + end
            if len(end) >= _OPEN:
                break
        self._decoder.decode(end)
        # The prompt's last character lacks bytes, so that the prompt alone reads as one � there.
        self._prompt_is_open = bool(self._decoder.getstate()[0])

    def push(self, token_id: int) -> str:
        """Takes the answer's next token; returns the text that became final, mostly of that token, sometimes none."""
        return self._own(self._decoder.decode(self._token_bytes[token_id]))

    def flush(self) -> str:
        """The answer is over: returns what was held back."""
        return self._own(self._decoder.decode(b"", final=True))

    def _own(self, text: str) -> str:
        """Without the � that the prompt has shown already, if no character came of it."""
        if self._prompt_is_open and text:
            self._prompt_is_open = False
            return text.removeprefix(_REPLACEMENT)
        return text
