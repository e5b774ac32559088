"""Damage to the tensors and the quantisation settings of a checkpoint that stays a valid safetensors file.

``file_mutations`` breaks files, most of which a header's own checks refuse. These changes reach what reads the tensors.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fuzz.file_mutations import JUNK

WEIGHTS = "model.safetensors"
CAST_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
DTYPES_OF_SIZE = {
    1: (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
    2: (torch.float16, torch.bfloat16, torch.int16, torch.uint16),
    4: (torch.float32, torch.int32, torch.uint32),
    8: (torch.float64, torch.int64),
}
# Values of settings that some scheme knows, and that another does not.
VALUES: list[Any] = [
    2, 3, 4, 5, 8, 16, 24, 32, 48, 64, 96, 128, -1, -2, 2**31 - 1, 2**31, True, False, None, "gptq", "gptq_v2", "awq", "fp8",
    "gemm", "gemv", "marlin", "GEMM", "dynamic", "static", "ue8m0", [32, 32], [1, 128], [128, 1], [2**31 - 1, 2**31 - 1], [64],
    [0, 0], {"+:.*": {"bits": 8}}, {"-:.*": {}}, {"(a+)+$": {"bits": 3, "group_size": 16}}, {".*": {"group_size": -1}},
]  # fmt: skip
TENSOR_KINDS = (
    "remove", "rename", "copy", "reinterpret", "cast", "transpose", "reshape", "cut", "repeat", "empty", "random bytes",
    "flip a byte", "fill", "swap", "dimensions", "empty module", "halve module",
)  # fmt: skip


def mutate_tensors(folder: Path, rng: random.Random) -> str:
    """Change one tensor or two of a checkpoint in one file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    parts = [name for name in tensors if not name.endswith("norm.weight")]
    what = []
    for _ in range(rng.choice([1, 1, 2])):
        name, kind = rng.choice(parts), rng.choice(TENSOR_KINDS)
        what.append(f"{kind} {name}")
        if name in tensors:
            _change(tensors, name, kind, rng)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return ", ".join(what)


def mutate_settings(folder: Path, rng: random.Random) -> str:
    """Change one value or two of the quantization_config."""
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"]
    what = []
    for _ in range(rng.choice([1, 1, 2])):
        path, table = "", settings
        while True:  # into nested tables, such as those of compressed-tensors
            key = rng.choice(sorted(table)) if table else "bits"
            path = f"{path}.{key}"
            if not isinstance(table.get(key), dict) or not table[key] or rng.random() < 0.2:
                break
            table = table[key]
        if rng.random() < 0.15:
            table.pop(key, None)
            what.append(f"remove {path}")
        else:
            table[key] = rng.choice(VALUES if rng.random() < 0.7 else JUNK)
            what.append(f"{path} = {str(table[key])[:40]}")
    (folder / "config.json").write_text(json.dumps(config))
    return ", ".join(what)


def _change(tensors: dict[str, Tensor], name: str, kind: str, rng: random.Random) -> None:
    tensor = tensors[name]
    other = rng.choice(sorted(tensors))
    if kind == "remove":
        del tensors[name]
    elif kind == "rename":
        module, _, part = name.rpartition(".")
        tensors[rng.choice([f"{name}.x", part, f"x.{name}", f"{module}.weight"])] = tensors.pop(name)
    elif kind == "copy":
        tensors[f"{name.rpartition('.')[0]}.{other.rpartition('.')[2]}"] = tensor.clone()
    elif kind == "swap":
        tensors[name], tensors[other] = tensors[other], tensor
    elif kind in ("empty module", "halve module"):
        dim = rng.choice([0, -1])
        for part in [part for part in tensors if part.rpartition(".")[0] == name.rpartition(".")[0] and tensors[part].ndim]:
            size = tensors[part].shape[dim] // 2 if kind == "halve module" else 0
            tensors[part] = tensors[part].narrow(dim, 0, size)
    elif kind in ("random bytes", "flip a byte"):
        content = tensor.contiguous().reshape(-1).view(torch.uint8)
        if len(content):
            places = range(len(content)) if kind == "random bytes" else [rng.randrange(len(content))]
            for place in places:
                content[place] = rng.randrange(256)
        tensors[name] = content.view(tensor.dtype).reshape(tensor.shape)
    else:
        tensors[name] = _reshaped(tensor, kind, rng)


def _reshaped(tensor: Tensor, kind: str, rng: random.Random) -> Tensor:
    """Return the tensor with another dtype, shape or value."""
    if kind == "reinterpret":
        return tensor.contiguous().view(rng.choice(DTYPES_OF_SIZE[tensor.itemsize]))
    if kind == "cast":
        return tensor.float().to(rng.choice(CAST_DTYPES))
    if kind == "reshape":
        return tensor.reshape(rng.choice([(-1,), (1, -1), (-1, 1), (1, *tensor.shape)]))
    if kind == "dimensions":
        return tensor.reshape(*tensor.shape, 1) if rng.random() < 0.5 or not tensor.numel() else tensor.reshape(-1)[0]
    if kind == "fill":
        value = rng.choice([0, 1, -1, 127, float("inf"), float("nan"), 2**31 - 1])
        filled = torch.full(tensor.shape, value, dtype=torch.float64).nan_to_num(7) if not tensor.is_floating_point() else value
        return filled.to(tensor.dtype) if isinstance(filled, Tensor) else torch.full(tensor.shape, filled).to(tensor.dtype)
    if tensor.ndim == 0:
        return tensor.reshape(1).repeat(2)
    dim = rng.randrange(tensor.ndim)
    if kind == "transpose":
        return tensor.transpose(0, -1)
    if kind == "cut":
        return tensor.narrow(dim, 0, rng.randrange(tensor.shape[dim] + 1))
    if kind == "empty":
        return tensor.narrow(dim, 0, 0)
    return torch.cat([tensor.view(torch.uint8 if tensor.itemsize == 1 else tensor.dtype)] * 2, dim).view(tensor.dtype)
