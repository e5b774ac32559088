"""``load_tokenizer``: the tokenizer of a model that is trained on text."""

from __future__ import annotations

from pathlib import Path

from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer


def load_tokenizer(folder: Path, vocab_size: int) -> TextTokenizer:
    """Return a model's tokenizer. Raises ``InvalidOption`` if it has none."""
    tokenizer = TextTokenizer.load(folder, vocab_size)
    if tokenizer is None:
        remedy = "Use a file that has one" if is_gguf(folder) else "Copy one into its folder"
        raise InvalidOption("this checkpoint has no tokenizer to encode text with", remedy=remedy)
    return tokenizer
