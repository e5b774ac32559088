"""Files of saved KV blocks: ``hasten-kv`` format 1, a safetensors file.

::

    header       metadata: the fields of ``KvSource``, the format, and the checksum
    token_ids    [token] int64, whole blocks
    group.0      [layer of the group, block, byte] uint8: the blocks that the token after the prefix attends to
    group.1      ...

The checksum is the SHA-256 of the header with zeros in its place, the token ids, and the SHA-256 of each layer of each group. So it
covers every byte of the file, and layers are read and checked in parallel. It tells damage, not malice: a program that can write
the file can choose the numbers. Block hashes are not stored: the reader computes them for its own tenant.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hasten.checkpoints.new_file import new_file
from hasten.checkpoints.shards import Header, HeaderError, read_stream_header
from hasten.core.errors import KvFileError, printable, show
from hasten.core.kv_file import KvFile

FORMAT = "hasten-kv"
VERSION = "1"  # raise it when the layout of blocks in a pool changes, too: see kernels.h
TOKEN_IDS = "token_ids"
MAX_TEXT = 2**16  # characters of a field; the frequency factors of a long head are the longest
MAX_HEADER_BYTES = 2**20  # so that a header of many tensors is refused before it is parsed
THREADS = 2  # layers that are read at a time
_NO_CHECKSUM = "0" * 64

GroupShape = tuple[int, int, int]  # layers, blocks, bytes of a block
ReadLayer = Callable[[int, int, Tensor], None]  # group, layer of the group, [block, byte] uint8 to fill
WriteLayer = Callable[[int, int, Tensor], None]  # the same, to take; called from several threads


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """What the numbers in KV blocks depend on, as texts. An engine loads only blocks of its own source."""

    weights: str  # SHA-256 of the model's files
    dtype: str
    quantization: str
    activations: str
    kv_cache_dtype: str
    block_size: str  # tokens
    groups: str  # layers, heads, head dim and window of each KV group
    rotary: str
    kernels: str  # with their instruction set
    library: str  # SHA-256 of the compiled kernels
    hasten: str  # its version

    def check(self, other: KvSource, file: str) -> None:
        """Raise ``KvFileError`` with both values of each field that differs from that of ``file``."""
        names = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != getattr(other, field.name)]
        if names:
            raise KvFileError(
                f"{file} holds KV blocks of another model or engine",
                got=", ".join(f"{name}={getattr(other, name)}" for name in names),
                allowed=", ".join(f"{name}={getattr(self, name)}" for name in names),
                remedy="Load the model as it was when the file was saved, or save the prefix again",
            )


SOURCE_FIELDS = tuple(field.name for field in dataclasses.fields(KvSource))


@dataclass(frozen=True, slots=True, eq=False)
class OpenKvFile:
    """A file whose header is checked. ``load`` checks its data."""

    path: Path
    stream: BinaryIO
    header: Header
    facts: KvFile
    source: KvSource
    checksum: str

    def check_shapes(self, num_tokens: int, shapes: Sequence[GroupShape]) -> None:
        """Raise ``KvFileError`` if the tensors are not of this many tokens and of these shapes."""
        got = [(entry.name, entry.dtype, entry.shape) for entry in self.header.entries]
        allowed = _tensors(num_tokens, shapes)
        if got != allowed:
            raise KvFileError(
                f"{self.path} has other tensors than its metadata says",
                got="; ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in got),
                allowed="; ".join(f"{name} {dtype} {list(shape)}" for name, dtype, shape in allowed),
                remedy="Save the prefix again",
            )

    def token_ids(self) -> list[int]:
        """Return the token ids, unchecked."""
        token_ids = array("q")
        token_ids.frombytes(self._token_bytes())
        return token_ids.tolist()

    def load(self, write: WriteLayer, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> None:
        """Pass every layer of every group on, as it is read.

        Raises ``KvFileError`` afterwards if the checksum is wrong. ``on_bytes`` gets the number of bytes passed on since the last
        call; it may raise.
        """
        groups = self.header.entries[1:]
        starts = [self.header.data_start + sum(e.nbytes for e in self.header.entries[: i + 1]) for i in range(len(groups))]
        layers = [(group, layer) for group, entry in enumerate(groups) for layer in range(entry.shape[0])]

        def load_layer(place: tuple[int, int]) -> bytes:
            group, layer = place
            _, num_blocks, block_bytes = groups[group].shape
            data = torch.empty(num_blocks, block_bytes, dtype=torch.uint8, device="cpu")
            self._read(_memory(data), starts[group] + layer * data.nbytes)
            write(group, layer, data)
            return hashlib.sha256(_memory(data)).digest()

        digests = []
        with ThreadPoolExecutor(THREADS) as pool:
            for (group, _), digest in zip(layers, pool.map(load_layer, layers), strict=True):
                digests.append(digest)
                on_bytes(groups[group].nbytes // groups[group].shape[0])
        if _checksum(self.header.content, self.checksum, self._token_bytes(), digests) != self.checksum:
            raise KvFileError(f"{self.path} is damaged: its checksum is wrong", remedy="Save the prefix again")

    def _token_bytes(self) -> bytearray:
        content = bytearray(self.header.entries[0].nbytes)
        self._read(memoryview(content), self.header.data_start)
        return content

    def _read(self, target: memoryview, offset: int) -> None:
        """Fill ``target`` from this place of the file on. Raises ``KvFileError``."""
        while len(target):
            try:
                count = os.preadv(self.stream.fileno(), [target], offset)
            except OSError as error:
                raise KvFileError(f"{self.path} cannot be read", got=error.strerror, remedy="Check the disk") from None
            if count == 0:
                raise KvFileError(f"{self.path} became shorter while it was read", remedy="Load it again")
            target, offset = target[count:], offset + count


@contextmanager
def open_kv_file(path: Path) -> Iterator[OpenKvFile]:
    """Yield a file of KV blocks with a checked header. Raises ``KvFileError``."""
    try:
        if not os.path.isfile(path) and os.path.lexists(path):  # opening a pipe would wait for a writer
            raise OSError(errno.EINVAL, "it is not a regular file")
        stream = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        got = getattr(error, "strerror", None) or error
        raise KvFileError(f"{path} cannot be read", got=got, remedy="Give a file that save_kv or hasten kv save wrote") from None
    with stream:
        yield _read_facts(path, stream)


def write_kv_file(
    path: Path,
    model: str,
    source: KvSource,
    token_ids: Sequence[int],
    shapes: Sequence[GroupShape],
    read: ReadLayer,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> KvFile:
    """Write a file and return what it holds. It replaces an older one at once, when it is complete.

    ``on_bytes`` gets the number of bytes written since the last call; it may raise. Raises ``CapacityError`` for a full disk, and
    ``InvalidOption`` for a path that cannot be written.
    """
    tensors = _tensors(len(token_ids), shapes)
    header = _header(tensors, {"format": FORMAT, "version": VERSION, "model": printable(model), **dataclasses.asdict(source)})
    tokens = array("q", token_ids).tobytes()
    num_bytes = 8 + len(header) + len(tokens) + sum(map(math.prod, shapes))
    digests = []
    with new_file(path, num_bytes) as stream:
        stream.write(len(header).to_bytes(8, "little") + header + tokens)
        for group, (num_layers, num_blocks, block_bytes) in enumerate(shapes):
            data = torch.empty(num_blocks, block_bytes, dtype=torch.uint8, device="cpu")
            for layer in range(num_layers):
                read(group, layer, data)
                digests.append(hashlib.sha256(_memory(data)).digest())
                stream.write(_memory(data))
                on_bytes(data.nbytes)
        checksum = _checksum(header, _NO_CHECKSUM, tokens, digests)
        stream.seek(8 + header.index(_NO_CHECKSUM.encode()))
        stream.write(checksum.encode())
    return _facts(path, model, source, len(token_ids), sum(shape[1] for shape in shapes), num_bytes)


def _memory(data: Tensor) -> memoryview:
    return data.numpy().reshape(-1).data


def _tensors(num_tokens: int, shapes: Sequence[GroupShape]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, dtype and shape of each tensor."""
    return [(TOKEN_IDS, "I64", (num_tokens,)), *((f"group.{i}", "U8", shape) for i, shape in enumerate(shapes))]


def _header(tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Return the header, with zeros for the checksum as the first text of 64 zeros."""
    header: dict[str, object] = {"__metadata__": {"checksum": _NO_CHECKSUM, **metadata}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * (8 if dtype == "I64" else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
    content = json.dumps(header).encode()
    return content + b" " * (-len(content) % 8)  # so that the token ids are aligned


def _checksum(header: bytes, checksum: str, token_bytes: bytes | bytearray, digests: Sequence[bytes]) -> str:
    hasher = hashlib.sha256(header.replace(checksum.encode(), _NO_CHECKSUM.encode(), 1))
    hasher.update(token_bytes)
    hasher.update(b"".join(digests))
    return hasher.hexdigest()


def _read_facts(path: Path, stream: BinaryIO) -> OpenKvFile:
    try:
        header = read_stream_header(stream, path, MAX_HEADER_BYTES)
        metadata = _read_metadata(header)
    except HeaderError as error:
        raise KvFileError(f"{path} is not a complete file of KV blocks", got=error, remedy="Save the prefix again") from None
    except OSError as error:
        raise KvFileError(f"{path} cannot be read", got=error.strerror, remedy="Check the disk") from None
    tokens, *groups = header.entries
    num_blocks = sum(entry.shape[1] for entry in groups if len(entry.shape) == 3)
    source = KvSource(**{name: metadata[name] for name in SOURCE_FIELDS})
    num_bytes = header.data_start + sum(entry.nbytes for entry in header.entries)
    facts = _facts(path, metadata["model"], source, tokens.shape[0], num_blocks, num_bytes)
    return OpenKvFile(path, stream, header, facts, source, metadata["checksum"])


def _read_metadata(header: Header) -> dict[str, str]:
    """Return the metadata of a file of this format. Raises ``HeaderError``."""
    metadata = header.metadata if isinstance(header.metadata, dict) else {}
    for name, value in (("format", FORMAT), ("version", VERSION)):
        if metadata.get(name) != value:
            raise HeaderError(f"its {name} is {show(metadata.get(name))} and must be {value}")
    wrong = [name for name in ("checksum", "model", *SOURCE_FIELDS) if not _is_text(metadata.get(name))]
    if wrong:
        raise HeaderError(f"its metadata has no text {', '.join(wrong)}")
    first = header.entries[0] if header.entries else None
    if first is None or (first.name, first.dtype, len(first.shape)) != (TOKEN_IDS, "I64", 1):
        raise HeaderError(f"its first tensor is not {TOKEN_IDS}")
    return metadata


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _facts(path: Path, model: str, source: KvSource, num_tokens: int, num_blocks: int, num_bytes: int) -> KvFile:
    return KvFile(
        path=str(path),
        model=model,
        num_tokens=num_tokens,
        num_blocks=num_blocks,
        num_bytes=num_bytes,
        kv_cache_dtype=source.kv_cache_dtype,
        kernels=source.kernels,
    )
