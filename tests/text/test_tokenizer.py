"""Byte offsets of the tokens of a text."""

from __future__ import annotations

from hasten.checkpoints.hub import resolve
from hasten.text.tokenizer import TextTokenizer


def test_offsets_are_the_lengths_of_decoded_prefixes() -> None:
    tokenizer = TextTokenizer.load(resolve("demo"), 8192)
    assert tokenizer is not None
    text = "def naïve(x):\n\treturn '你好 🙂'  # <|im_end|> done\n"
    ids, ends = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert ends == sorted(ends) and ends[-1] == len(text.encode())
    for count in range(1, len(ids) + 1):
        prefix = tokenizer.decode(ids[1:count], skip_special_tokens=False)  # without the token that the tokenizer adds
        if "\N{REPLACEMENT CHARACTER}" not in prefix:  # not in the middle of a character
            assert ends[count - 1] == len(prefix.encode())
