"""Damage to the files of a folder: bytes, JSON values, safetensors headers, and the files themselves.

Every function changes something and returns a description of it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

# Values of every type and at every limit. Any of them may replace any value.
JUNK: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, -1, 64, 101, 2**29, 2**31 - 1, 2**31, 2**32 + 16, 2**63 - 1, 2**63, -(2**63), 10**9, 10**12,
    10**18, 10**400, 0.0, 1.0, 1.5, -0.5, 1e-320, 1e-38, 1e38, 1e300, float("inf"), float("-inf"), float("nan"), "", "x", "2", "\0",
    "\ud800", "é", "a" * 300, "../x", "/etc/passwd", "float64", "bfloat16", [], [None], [1, 2], [2.0], ["x"], [[2]], [0] * 1000,
    {}, {"a": 1}, {"type": "yarn", "factor": 1e300}, {"rope_type": "yarn", "factor": 2.0, "beta_slow": 1e-300},
]  # fmt: skip
# Keys that change the computation, which a configuration may lack.
KEYS = [
    "rope_scaling", "rope_parameters", "rope_theta", "head_dim", "sliding_window", "use_sliding_window", "layer_types", "auto_map",
    "quantization_config", "eos_token_id", "tie_word_embeddings", "num_key_value_heads", "dtype", "torch_dtype", "n_inner",
    "attention_bias", "mlp_bias", "max_window_layers", "temperature", "top_k", "top_p", "do_sample", "num_heads", "aux_layers",
    "num_hidden_layers", "truncated_vocab_size", "original_lm_head", "draft_vocab_size", "transformer_layer_config",
    "eagle_aux_hidden_state_layer_ids", "target_hidden_size", "head_accuracies", "agreements", "calibrations", "exit_layers",
]  # fmt: skip
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "U16", "U64", "F8_E4M3", "F4", "C64", "X", "", 3, None, []]
SHAPES: list[Any] = [
    [], [0], [1], [2**62], [2**62, 4], [2**32, 2**32], [2**62, 0], [-1, -32], [1] * 9, [1] * 70, ["3"], [3.0], [True], None, 10**30,
    [10**30], [10**400] * 20,
]  # fmt: skip
OFFSETS: list[Any] = [
    [0, 0], [2**63, 2**63 + 1], [-1, 5], [5, 1], [0], [0, 1, 2], None, [0, 2**62], [0.0, 4.0], [True, 4], [10**400, 10**400],
]  # fmt: skip

HEADER_KINDS = ["dtype", "shape", "offsets", "same data", "metadata", "remove", "rename", "add", "reverse", "size", "int"]
TENSORS = ["lm_head.weight", "model.layers.99999999.x", "blocks.999999999.layers.0.weight", "", "d2t", "embed_tokens.weight"]
NAMES = ["model.bin", "x.safetensors", "medusa_lm_head.safetensors", "draft_ids.safetensors"]


def mutate(folder: Path, rng: random.Random) -> str:
    """Damage one file of ``folder``."""
    files = sorted(folder.iterdir())
    file = rng.choice(files)
    if rng.random() < 0.12:
        return f"{file.name}: {_mutate_entry(file, files, rng)}"
    content = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.8:
        content, what = _mutate_json(content, rng)
    elif file.suffix == ".safetensors" and rng.random() < 0.6:
        content, what = _mutate_header(content, rng)
    else:
        content, what = _mutate_bytes(content, rng)
    file.write_bytes(content)
    return f"{file.name}: {what}"


def _mutate_entry(file: Path, files: list[Path], rng: random.Random) -> str:
    """Replace a file by what is none, or by another."""
    kinds = ["delete", "rename", "swap", "folder", "dangling link", "loop", "empty", "device", "long link", "pipe"]
    kind, other = rng.choice(kinds), rng.choice(files)
    if kind == "swap":
        swapped = file.read_bytes()
        shutil.copyfile(other, file.with_suffix(".swapped"))
        other.write_bytes(swapped)
        os.replace(file.with_suffix(".swapped"), file)
        return f"swap with {other.name}"
    if kind == "rename":
        file.rename(file.with_name(rng.choice(NAMES)))
        return kind
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "empty":
        file.touch()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind != "delete":
        target = {"dangling link": "nowhere", "loop": file.name, "device": "/dev/zero", "long link": "x" * 300}
        os.symlink(target[kind], file)
    return kind


def _mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.choice(["truncate", "extend", "flip", "flip", "flip a start", "zero", "mark", "utf-16", "deep", "repeat"])
    place = rng.randrange(len(content) + 1)
    if kind == "truncate":
        return content[:place], f"truncate to {place}"
    if kind == "extend":
        return content + rng.randbytes(rng.randrange(1, 40)), kind
    if kind == "mark":
        return b"\xef\xbb\xbf" + content, "byte order mark"
    if kind == "utf-16":
        return content.decode("latin-1").encode("utf-16"), kind
    if kind == "deep":
        depth = rng.choice([50, 70, 900, 5_000, 100_000])
        return b'{"a":' * depth + b"1" + b"}" * depth, f"deep by {depth}"
    if kind == "repeat":
        return content + content, kind
    changed = bytearray(content)
    limit = min(len(content), 2_000) if kind == "flip a start" else len(content)
    for _ in range(rng.choice([1, 1, 2, 8]) if limit else 0):
        changed[rng.randrange(limit)] = 0 if kind == "zero" else rng.randrange(256)
    return bytes(changed), kind


def _mutate_json(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    value = json.loads(content)
    parents = containers(value)
    parent = rng.choice(parents[:1] if rng.random() < 0.5 else parents)
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    junk, kind = rng.choice(JUNK), rng.choice(["replace", "replace", "replace", "remove", "add", "rename", "wrap", "twice"])
    what = f"{kind} {str(junk)[:40]!r}"
    if kind == "add" or not keys:
        key: Any = rng.choice(KEYS)
        if isinstance(parent, dict):
            parent[key] = junk
        else:
            parent.append(junk)
        return json.dumps(value).encode(), f"{what} as {key}"
    key = rng.choice(keys)
    what = f"{what} at {key}"
    if kind == "replace":
        parent[key] = junk
    elif kind == "remove":
        del parent[key]
    elif kind == "wrap":
        parent[key] = [parent[key]]
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice([*KEYS, "", "\0", "\ud800"])] = parent.pop(key)
    elif kind == "twice" and isinstance(parent, dict):
        text = json.dumps(parent)[:-1] + f", {json.dumps(key)}: {json.dumps(junk)}}}"
        return (text if parent is value else json.dumps(value)).encode(), what
    return json.dumps(value).encode(), what


def containers(value: Any) -> list[Any]:
    """Return all objects and lists in a JSON value."""
    found, queue = [], [value]
    while queue:
        item = queue.pop()
        if isinstance(item, (dict, list)):
            found.append(item)
            queue += item.values() if isinstance(item, dict) else item[:50]
    return found or [[value]]


def _mutate_header(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    what = []
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(names)
        kind = rng.choice(HEADER_KINDS)
        what.append(f"{kind} of {name}")
        if name not in header:
            continue
        entry = header[name]
        if kind == "dtype":
            entry["dtype"] = rng.choice(DTYPES)
        elif kind == "shape":
            shape = entry["shape"] if isinstance(entry["shape"], list) else []  # None after an earlier change
            entry["shape"] = rng.choice([*SHAPES, shape[::-1], [*shape, 1], [1, *shape], [2 * size for size in shape]])
        elif kind == "offsets":
            entry["data_offsets"] = rng.choice(OFFSETS)
        elif kind == "same data":
            other = header[rng.choice(list(header))]  # no table if it is metadata that an earlier change replaced
            entry["data_offsets"] = other.get("data_offsets") if isinstance(other, dict) else None
        elif kind == "metadata":
            header["__metadata__"] = rng.choice([None, 3, [], {"a": 1}, {"format": "tf"}, {"format": 3}, {}, "x"])
        elif kind == "remove":
            del header[name]
        elif kind == "rename":
            header[name + rng.choice([".x", "\0", "/../x", "é", "\ud800", "9" * 5000])] = header.pop(name)
        elif kind == "add":
            header[rng.choice(TENSORS)] = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}
        elif kind == "reverse":
            header = dict(reversed(header.items()))
        elif kind == "size":
            text = json.dumps(header).encode()
            wrong = rng.choice([0, 1, len(text) - 1, len(text) + 8, 2**31, 2**63 - 1, 2**64 - 1])
            return wrong.to_bytes(8, "little") + text + data, kind
        elif entry.get("dtype") == "F32":
            entry["dtype"] = rng.choice(["I32", "U32"])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data, ", ".join(what)
