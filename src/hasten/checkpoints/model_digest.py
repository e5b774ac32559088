"""``model_digest``: the SHA-256 of a model's files.

The digests of large files are remembered in hasten's cache folder, by path, size, inode and times of change: hashing takes about a
second per gigabyte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.side_files import TEXT_FILES, side_files
from hasten.core.cache_folder import cache_folder
from hasten.core.errors import CheckpointError, HastenError

CHUNK = 1 << 22  # bytes that are read at a time
MIN_REMEMBERED = 1 << 23  # bytes; smaller files are hashed again in milliseconds
MAX_REMEMBERED = 4096  # files
SETTLED = 2.0  # seconds since a file's last change; a later change could have the same time of change
THREADS = 2  # files that are hashed at a time

OnBytes = Callable[[int], object]  # takes the number of bytes hashed since the last call, from any thread


@dataclass(frozen=True, slots=True)
class ModelDigest:
    """SHA-256 values in hexadecimal."""

    weights: str  # of config.json and the weight files, or of a GGUF file
    text: str  # of the tokenizer, the templates and generation_config.json; they are part of a GGUF file


def model_digest(checkpoint: Checkpoint, on_bytes: OnBytes = lambda num_bytes: None) -> ModelDigest:
    """Return the digests of an open checkpoint.

    Raises ``CheckpointError`` for a file that cannot be read.
    """
    weights = _digest_of(weight_files(checkpoint), on_bytes)
    if checkpoint.gguf is not None:
        return ModelDigest(weights, weights)
    folder = checkpoint.folder
    return ModelDigest(weights, _digest_of([folder / name for name in side_files(folder, TEXT_FILES)], on_bytes))


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """Return the files that decide the model.

    They are config.json and those with the weights, sorted, or the files of a GGUF model.
    """
    if checkpoint.gguf is not None:
        return sorted(checkpoint.gguf.sizes)
    return [checkpoint.folder / "config.json", *sorted({entry.file for entry in checkpoint.files.entries.values()})]


def _digest_of(files: Iterable[Path], on_bytes: OnBytes) -> str:
    """Return one digest of names and contents."""
    listed = list(files)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(lambda file: file_digest(file, on_bytes), listed))
    combined = hashlib.sha256(b"hasten/files/1\0")
    for file, digest in zip(listed, digests, strict=True):
        combined.update(f"{file.name}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return combined.hexdigest()


def file_digest(file: Path, on_bytes: OnBytes = lambda num_bytes: None) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises ``CheckpointError``."""
    try:
        with open(file, "rb") as stream:
            state = os.fstat(stream.fileno())
            identity = (
                f"{os.path.realpath(file)}|{state.st_dev}|{state.st_ino}|{state.st_size}|{state.st_mtime_ns}|{state.st_ctime_ns}"
            )
            is_large = state.st_size >= MIN_REMEMBERED
            if is_large and (remembered := _read_memory().get(identity)):
                on_bytes(state.st_size)
                return remembered
            hasher = hashlib.sha256()
            while chunk := stream.read(CHUNK):
                hasher.update(chunk)
                on_bytes(len(chunk))
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read", got=error.strerror, remedy="Check its permissions") from None
    digest = hasher.hexdigest()
    is_settled = (after.st_mtime_ns, after.st_size) == (state.st_mtime_ns, state.st_size)
    if is_large and is_settled and time.time() - max(state.st_mtime, state.st_ctime) > SETTLED:
        _remember(identity, digest)
    return digest


def _memory_file() -> Path:
    return cache_folder() / "digests.json"


def _read_memory() -> dict[str, str]:
    """Return the remembered digests; none if they cannot be read."""
    try:
        found = json.loads(_memory_file().read_bytes())
    except (OSError, ValueError, RecursionError, HastenError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str) and len(value) == 64}


def _remember(identity: str, digest: str) -> None:
    """Add a digest; a concurrent writer's may be lost, and is then computed again."""
    with contextlib.suppress(OSError, HastenError):
        remembered = [*_read_memory().items(), (identity, digest)][-MAX_REMEMBERED:]
        file = _memory_file()
        new = file.with_name(f"{file.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            new.write_text(json.dumps(dict(remembered)), encoding="utf-8")
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)
