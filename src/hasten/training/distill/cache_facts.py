"""``CacheFacts``: what ``cache.json`` of a teacher cache says, checked when it is read."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hasten.checkpoints.json_values import are_integers, is_integer, read_json
from hasten.core.errors import CheckpointError, show

FILE = "cache.json"
SEQUENCES = "sequences.safetensors"  # the token ids
FORMAT, VERSION = "hasten-teacher-cache", 1
EXAMPLES, WINDOWS = "examples", "windows"  # kinds of sequences
MAX_SMALL_VOCAB = 1 << 16  # token ids of smaller vocabularies are stored in two bytes
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CachePart:
    """The sequences ``[first, stop)`` of a cache, which are in one file."""

    first: int
    stop: int
    positions: int  # predicted ones of these sequences

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return f"part-{self.first:09}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFacts:
    teacher: str  # as the caller named it
    teacher_sha256: str  # of its weights
    tokenizer_sha256: str
    data_sha256: str  # of the file
    sequences_sha256: str  # of their token ids
    kind: str
    seq_len: int
    validation_fraction: float
    top_k: int
    vocab_size: int
    hidden_layers: tuple[int, ...]  # from 0
    hidden_size: int
    num_layers: int
    parts: tuple[CachePart, ...] = ()

    @property
    def num_classes(self) -> int:
        """Tokens with a probability of their own, and the rest of the vocabulary if there is one."""
        return self.top_k + (self.top_k < self.vocab_size)

    @property
    def ids_dtype(self) -> str:
        """The dtype of token ids, as safetensors writes it."""
        return "U16" if self.vocab_size <= MAX_SMALL_VOCAB else "I32"

    @property
    def position_bytes(self) -> int:
        """Bytes per predicted position."""
        ids_bytes = self.top_k * (2 if self.ids_dtype == "U16" else 4)
        return ids_bytes + 2 * self.num_classes + 2 * self.hidden_size * len(self.hidden_layers)

    def tensors(self, positions: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of each tensor of a part with so many positions, by name."""
        hidden = {hidden_name(layer): ("BF16", (positions, self.hidden_size)) for layer in self.hidden_layers}
        log_probs = ("F16", (positions, self.num_classes))
        return {"token_ids": (self.ids_dtype, (positions, self.top_k)), "log_probs": log_probs, **hidden}

    def write(self, folder: Path) -> None:
        facts = {"format": FORMAT, "version": VERSION, "temperature": 1, **dataclasses.asdict(self)}
        (folder / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> CacheFacts:
        """Read ``cache.json``. Raises ``CheckpointError`` for a folder that is no complete cache."""
        if not (folder / FILE).is_file():
            raise CheckpointError(
                f"{folder} is no teacher cache", got=f"no {FILE}", remedy="Give a folder that hasten data logits wrote"
            )
        values = read_json(folder / FILE)
        for name, expected in (("format", FORMAT), ("version", VERSION), ("temperature", 1)):
            value = values.pop(name, None)
            if type(value) is not type(expected) or value != expected:
                raise damaged(folder, f"{name} is not {expected}")
        names = {field.name for field in dataclasses.fields(cls)}
        if values.keys() != names:
            raise damaged(folder, f"{FILE} lacks or adds {show(sorted(values.keys() ^ names))}")
        wrong = [name for name in names if not _is_valid(name, values[name])]
        if wrong:
            raise damaged(folder, f"{FILE} has {', '.join(f'{name}={show(values[name])}' for name in sorted(wrong))}")
        values["parts"] = tuple(CachePart(part["first"], part["stop"], part["positions"]) for part in values["parts"])
        values["hidden_layers"] = tuple(values["hidden_layers"])
        facts = cls(**values)
        if facts.top_k > facts.vocab_size or any(layer >= facts.num_layers for layer in facts.hidden_layers):
            raise damaged(folder, f"{FILE} has a top_k or a layer that the teacher has not")
        if facts.parts[0].first != 0 or any(left.stop != right.first for left, right in pairwise(facts.parts)):
            raise damaged(folder, f"the parts of {FILE} have gaps")
        return facts


def hidden_name(layer: int) -> str:
    return f"hidden.{layer}"


def damaged(folder: Path, fault: str) -> CheckpointError:
    return CheckpointError(f"the teacher cache {folder} is damaged", got=fault, remedy="Write it again with hasten data logits")


def _is_valid(name: str, value: Any) -> bool:
    if name == "teacher":
        return isinstance(value, str)
    if name == "kind":
        return value in (EXAMPLES, WINDOWS)
    if name.endswith("_sha256"):
        return isinstance(value, str) and _SHA256.fullmatch(value) is not None
    if name == "validation_fraction":
        return type(value) is float and 0 < value <= 0.5
    if name == "hidden_layers":
        return are_integers(value, 0) and len(set(value)) == len(value)
    if name == "parts":
        return isinstance(value, list) and bool(value) and all(map(_is_part, value))
    return is_integer(value, 1, 2**31 - 1)


def _is_part(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"first", "stop", "positions"}
        and are_integers(list(value.values()), 0)
        and value["first"] < value["stop"]
        and value["positions"] > 0
    )
