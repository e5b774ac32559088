"""``copy_side_files``: tokenizer, templates and whatever else belongs to a model beside its weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from hasten.checkpoints.regular_file import has_file
from hasten.checkpoints.shards import file_names
from hasten.core.errors import CheckpointError

# What decides the text of a prompt and of an output.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "processor_config.json",
    "*preprocessor_config.json",
)
# Neither weights and their index, nor code, nor a card: it describes the model before a change.
SIDE_FILES = (*TEXT_FILES, "LICENSE*", "NOTICE*")
TEMPLATES = "additional_chat_templates"  # a folder, as transformers names it


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy these files into an existing folder and return their names, sorted.

    Links become files. Raises ``CheckpointError`` for a file that cannot be read, and ``OSError`` if one cannot be written.
    """
    copied = side_files(source)
    for name in copied:
        content = _read(source / name)
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    return copied


def side_files(source: Path, patterns: Sequence[str] = SIDE_FILES) -> list[str]:
    """Return the names of these files of a model folder, sorted. Raises ``CheckpointError``."""
    names = [name for name in file_names(source) if any(fnmatch(name, pattern) for pattern in patterns)]
    if os.path.isdir(source / TEMPLATES):
        names += [f"{TEMPLATES}/{name}" for name in file_names(source / TEMPLATES) if name.endswith(".jinja")]
    return [name for name in names if not os.path.isdir(source / name) and has_file(source / name)]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read", got=error.strerror, remedy="Check its permissions") from None
