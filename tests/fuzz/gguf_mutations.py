"""Damage to the metadata and the tensors of a GGUF file that stays a valid one, and to the bytes of its header.

The ``gguf`` package reads the file and writes it again.
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.gguf_writer import GGUFValue, TensorInfo

from tests.fuzz.file_mutations import JUNK

FILE = "model.gguf"
NUMBERS = (0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: list[Any] = [-1, 2, 4, 16, 24, 32, 48, 64, 96, 100, 101, 128, 256, 0.5, "gpt2", "llama", "qwen3", "linear", "yarn", "none"]
# Keys that change the computation, which a file may lack.
KEYS = (
    "llama.expert_count", "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.attention.sliding_window",
    "llama.attention.key_length", "llama.vocab_size", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template", "general.sampling.temp", "general.sampling.top_k", "split.count", "general.type",
)  # fmt: skip
TYPES = ("F32", "F16", "BF16", "F64", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_XS", "I32")
TENSOR_KINDS = ("remove", "rename", "copy", "swap", "transpose", "reshape", "type", "type", "fill", "random bytes", "flip a byte")
TENSORS = ("output.bias", "rope_freqs.weight", "blk.0.attn_q.bias", "blk.7.attn_q.weight", "blk.0.ffn_gate.scale", "x")


def damage_header(content: bytes, header: int, rng: random.Random) -> bytes:
    """Return a file cut, or with changed bytes, mostly of its first ``header`` bytes."""
    damaged, place = bytearray(content), rng.randrange(header)
    match rng.randrange(6):
        case 0:
            return content[: rng.choice((place, rng.randrange(len(content))))]
        case 1:
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(header)] = rng.randrange(256)
        case 2:
            damaged[place : place + 8] = struct.pack("<Q", rng.choice((*NUMBERS, len(content), header)))
        case 3:
            damaged[place : place + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
        case 4:
            del damaged[place : place + rng.randint(1, 16)]
        case 5:
            damaged[place:place] = content[(start := rng.randrange(header)) : start + rng.randint(1, 64)]
    return bytes(damaged)


def mutate_header(folder: Path, rng: random.Random) -> str:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(damage_header(content, min(len(content), 6_000), rng))
    return "header"


def mutate_metadata(folder: Path, rng: random.Random) -> str:
    """Change one value or two."""
    values, tensors = _read(folder)
    what = []
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice([*values, *KEYS, *(name for name in values if "tokens" in name or "merges" in name)])
        if rng.random() < 0.15 and key in values:
            del values[key]
            what.append(f"remove {key}")
            continue
        old = values[key].value if key in values else None
        values[key] = _change_items(values[key], rng) if isinstance(old, list) and rng.random() < 0.8 else _random_value(rng)
        what.append(f"{key} = {str(values[key].value)[:40]}")
    _write(folder, values, tensors)
    return ", ".join(what)


def mutate_gguf_tensors(folder: Path, rng: random.Random) -> str:
    """Change one tensor or two."""
    values, tensors = _read(folder)
    what = []
    for _ in range(rng.choice([1, 1, 2])):
        name, kind = rng.choice(sorted(tensors)), rng.choice(TENSOR_KINDS)
        what.append(f"{kind} {name}")
        _change_tensor(tensors, name, kind, rng)
    _write(folder, values, tensors)
    return ", ".join(what)


def _read(folder: Path) -> tuple[dict[str, GGUFValue], dict[str, TensorInfo]]:
    reader = GGUFReader(folder / FILE)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    values = {
        name: GGUFValue(field.contents(), field.types[0], field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None)
        for name, field in fields.items()
    }
    tensors = {}
    for tensor in reader.tensors:
        raw = np.array(tensor.data).view(np.uint8).reshape(-1)
        tensors[tensor.name] = TensorInfo([int(size) for size in tensor.shape[::-1]], tensor.tensor_type, raw.nbytes, raw)
    return values, tensors


def _write(folder: Path, values: dict[str, GGUFValue], tensors: dict[str, TensorInfo]) -> None:
    writer = GGUFWriter(folder / FILE, "llama")
    writer.kv_data[0] = values
    writer.tensors[0] = {name: replace(info) for name, info in tensors.items()}  # the writer takes the data out of each
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_value(rng: random.Random) -> GGUFValue:
    value = rng.choice(VALUES if rng.random() < 0.6 else JUNK)
    if isinstance(value, bool):
        return GGUFValue(value, GGUFValueType.BOOL)
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        fitting = GGUFValueType.UINT64 if value >= 2**31 else GGUFValueType.INT32 if value >= -(2**31) else GGUFValueType.INT64
        return GGUFValue(value, fitting)
    if isinstance(value, float):
        return GGUFValue(value, GGUFValueType.FLOAT64)
    if isinstance(value, list) and value and all(type(item) is int and abs(item) < 2**31 for item in value):
        return GGUFValue(value, GGUFValueType.ARRAY, GGUFValueType.INT32)
    text = value if isinstance(value, str) else str(value)[:1000]
    return GGUFValue(text.encode("utf-8", "replace").decode(), GGUFValueType.STRING)


def _change_items(old: GGUFValue, rng: random.Random) -> GGUFValue:
    """Return a list with an item less, one more, or two of them exchanged."""
    items = list(old.value)
    place, other = rng.randrange(len(items)), rng.randrange(len(items))
    kind = rng.randrange(4 if len(items) > 1 else 3) + (len(items) == 1)  # the writer refuses an empty list
    if kind == 0:
        del items[place]
    elif kind == 1:
        items.insert(place, items[other])
    elif kind == 2:
        items[place], items[other] = items[other], items[place]
    else:
        items[place] = rng.choice([0, -1, 2**31 - 1]) if isinstance(items[place], int) else f"{items[other]}{items[place]}"
    return GGUFValue(items, old.type, old.sub_type)


def _change_tensor(tensors: dict[str, TensorInfo], name: str, kind: str, rng: random.Random) -> None:
    info, other = tensors[name], rng.choice(sorted(tensors))
    shape, raw = list(info.shape), info.tensor
    if kind == "remove":
        del tensors[name]
    elif kind in ("rename", "copy"):
        target = rng.choice([*TENSORS, f"{name}.x", name.replace("blk.0", "blk.1")])
        tensors[target] = tensors.pop(name) if kind == "rename" else info
    elif kind == "swap":
        tensors[name], tensors[other] = tensors[other], info
    elif kind == "transpose":
        tensors[name] = TensorInfo(shape[::-1], info.dtype, info.nbytes, raw)
    elif kind == "reshape":
        size = math.prod(shape)
        changed = rng.choice([[size], [1, size], [size, 1], [1, *shape], [*shape, 1], [2 * shape[0], *shape[1:]]])
        tensors[name] = TensorInfo(changed, info.dtype, info.nbytes, raw)
    elif kind == "type":
        number = GGMLQuantizationType[rng.choice(TYPES)]
        weights, nbytes = gguf.GGML_QUANT_SIZES[number]
        content = np.frombuffer(rng.randbytes(max(1, math.prod(shape) // weights) * nbytes), np.uint8)
        tensors[name] = TensorInfo(shape, number, content.nbytes, content)
    else:
        changed = raw.copy()
        if kind == "fill":
            changed[:] = rng.choice([0, 1, 127, 128, 255])
        elif kind == "flip a byte":
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        else:
            changed[:] = np.frombuffer(rng.randbytes(len(changed)), np.uint8)
        tensors[name] = TensorInfo(shape, info.dtype, info.nbytes, changed)
