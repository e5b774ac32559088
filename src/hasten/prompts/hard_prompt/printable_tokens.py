"""``printable_tokens``: the tokens that may stand in a hard prompt."""

from __future__ import annotations

from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # of bytes that are no UTF-8


def printable_tokens(tokenizer: TextTokenizer, vocab_size: int) -> list[int]:
    """Return the ids of tokens that are printable text by themselves, without special tokens.

    Raises ``InvalidOption`` if there are none.
    """
    special = set(tokenizer.special_token_ids.values())
    texts = ((token, tokenizer.decode([token], skip_special_tokens=False)) for token in range(vocab_size) if token not in special)
    found = [token for token, text in texts if text.strip() and text.isprintable() and _REPLACEMENT not in text]
    if not found:
        raise InvalidOption(
            "no token of this checkpoint is printable text by itself", got=f"{vocab_size} tokens", remedy="Use another model"
        )
    return found
