"""``convert_tokenizer``: a tokenizer from files older than ``tokenizer.json``, through transformers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from hasten.core.errors import CheckpointError

FILES = ("tokenizer.model", "vocab.json", "tokenizer_config.json")  # any of these is a tokenizer, or part of one


def convert_tokenizer(folder: Path) -> tuple[Tokenizer, Mapping[str, str]]:
    """Return the tokenizer and its named special tokens. Raises ``CheckpointError``."""
    with reading(folder):
        _check_packages(folder)
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
    except (CheckpointError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of tokenizers is no ``Exception``
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read", got=f"{type(error).__name__}: {error}", remedy="Copy it again"
        ) from error


def _check_packages(folder: Path) -> None:
    """Raise ``CheckpointError`` if packages are missing that read ``tokenizer.model``."""
    file = folder / "tokenizer.model"
    if not file.exists() or (folder / "vocab.json").exists():
        return
    with file.open("rb") as opened:
        is_sentencepiece = opened.read(1) == b"\n"  # the first field of the protocol buffer; tiktoken's files are text
    for package in ("sentencepiece", "google.protobuf") if is_sentencepiece else ("tiktoken",):
        try:
            importlib.import_module(package)
        except ImportError:
            extra = "sentencepiece" if is_sentencepiece else "tiktoken"
            raise CheckpointError(
                f"the tokenizer.model in {folder} needs the package {package}, which is not installed",
                remedy=f'Run pip install "hasten[{extra}]", or save the tokenizer as tokenizer.json beside it',
            ) from None
