"""``convert_tokenizer``: a tokenizer from files older than ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from hasten.core.errors import CheckpointError
from hasten.text import sentencepiece_model
from hasten.text.panics import is_panic
from hasten.text.tokenizer_config import TokenizerConfig

FILES = (sentencepiece_model.FILE, "vocab.json", "tokenizer_config.json")  # any of these is a tokenizer, or part of one


def convert_tokenizer(folder: Path, config: TokenizerConfig) -> tuple[Tokenizer, Mapping[str, str]]:
    """Return the tokenizer and its named special tokens. Raises ``CheckpointError``."""
    with reading(folder):
        if (folder / sentencepiece_model.FILE).exists():
            return sentencepiece_model.read_sentencepiece(folder, config)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has no fast form",
            got=type(tokenizer).__name__,
            allowed="tokenizers that can be saved as tokenizer.json",
            remedy="Convert it with transformers and save it beside the weights",
        )
    return backend, dict(tokenizer.special_tokens_map)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise for a broken file, an error of any class, into ``CheckpointError``."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read", got=f"{type(error).__name__}: {error}", remedy="Copy it again"
        ) from error
