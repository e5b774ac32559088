"""``read_tokenizer``: a tokenizer from the files of a checkpoint; ``tokenizer.json`` decides.

``read_gguf_tokenizer`` reads that of a GGUF file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.regular_file import has_file
from hasten.core.errors import CheckpointError
from hasten.text import sentencepiece_model
from hasten.text.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from hasten.text.panics import is_panic
from hasten.text.rebuilt_tokenizer import CLASSES, differing_probe, rebuilding_class
from hasten.text.tokenizer_config import TokenizerConfig

_FILE = "tokenizer.json"
FILES = (_FILE, sentencepiece_model.FILE, "vocab.json", "tokenizer_config.json")  # any of these is a tokenizer, or part of one


class TokenizerWarning(UserWarning):
    """Files of a checkpoint disagree about its tokenizer; ``tokenizer.json`` decides."""


def read_tokenizer(folder: Path, config: TokenizerConfig, vocab_size: int) -> tuple[Tokenizer, Mapping[str, str]]:
    """Return the tokenizer and its named special tokens.

    Raises ``CheckpointError`` if the tokenizer is broken or larger than the embedding.
    """
    if has_file(folder / _FILE):
        with _reading(folder):
            tokenizer = Tokenizer.from_file(str(folder / _FILE))
            # The file may carry the settings of a training run. A saved truncation would cut prompts without a word.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            size = _size(tokenizer)
        special_tokens = _special_tokens(tokenizer, config, folder)
    else:
        tokenizer, special_tokens = _convert(folder, config)
        size = _size(tokenizer)
    _check_size(size, vocab_size)
    return tokenizer, special_tokens


def read_gguf_tokenizer(file: GgufFile, vocab_size: int) -> GgufTokenizer | None:
    """Return the tokenizer in a GGUF file, or None if the file has none.

    Raises ``CheckpointError`` if the tokenizer is broken or larger than the embedding.
    """
    with _reading(file.path):
        found = gguf_tokenizer(file.metadata, str(file.path))
        size = 0 if found is None else _size(found.tokenizer)
    _check_size(size, vocab_size)
    return found


def _special_tokens(tokenizer: Tokenizer, config: TokenizerConfig, folder: Path) -> Mapping[str, str]:
    """Return the named special tokens, with those that transformers' class adds.

    Warn where the class of transformers, or ``tokenizer_config.json``, differs from ``tokenizer.json``.
    """
    model_config = read_json(folder / "config.json") if has_file(folder / "config.json") else {}
    class_name = rebuilding_class(tokenizer, config.values, model_config)
    probe = None if class_name is None else differing_probe(tokenizer, config.values, class_name)
    if probe is not None:
        warnings.warn(
            f"transformers reads other tokens from {folder} than its {_FILE} says: {class_name} splits {probe!r} in another way. "
            f"hasten follows {_FILE}",
            TokenizerWarning,
            stacklevel=4,
        )
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [f"{name} {token!r}" for name, token in config.special_tokens.items() if token not in added and name != "pad_token"]
    if missing:
        warnings.warn(
            f"{_FILE} in {folder} lacks special tokens that tokenizer_config.json names, so they are text like any other: "
            f"{', '.join(missing)}",
            TokenizerWarning,
            stacklevel=4,
        )
    defaults = CLASSES[class_name].special_tokens if class_name is not None else {}
    return {
        **{name: token for name, token in defaults.items() if name not in config.values and token in added},
        **config.special_tokens,
    }


def _size(tokenizer: Tokenizer) -> int:
    """Return the largest id plus one, with added tokens and the tokens that begin or end each text."""
    token_ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return max((-1, *token_ids, *tokenizer.get_added_tokens_decoder(), *tokenizer.encode("").ids)) + 1


def _convert(folder: Path, config: TokenizerConfig) -> tuple[Tokenizer, Mapping[str, str]]:
    """Return the tokenizer of older files and its named special tokens."""
    with _reading(folder):
        if has_file(folder / sentencepiece_model.FILE):
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
def _reading(folder: Path) -> Iterator[None]:
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


def _check_size(tokenizer_size: int, embedding_size: int) -> None:
    """Raise ``CheckpointError`` if the tokenizer has ids without an embedding row.

    ``tokenizer_size`` is its largest id plus one. A larger embedding is usual: its rows are padded to a round number.
    """
    if tokenizer_size > embedding_size:
        raise CheckpointError(
            "the tokenizer has more tokens than the model has embedding rows",
            got=f"{tokenizer_size:,} tokens and {embedding_size:,} rows",
            allowed=f"up to {embedding_size:,} tokens",
            remedy="Use the tokenizer that came with this checkpoint",
        )
