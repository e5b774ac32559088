"""Medusa heads on disk: vLLM's layout, read and written, and the original one, read.

::

    vLLM      blocks.{head}.layers.{layer}.weight|bias    lm_heads.{head}.weight    token_map
              original_lm_head: lm_head.weight (or lm_heads.0.weight) once for all heads, or nothing: the model's own
    original  {head}.{layer}.linear.weight|bias           {head}.{number of layers}.weight

A tensor that no head needs is refused, not dropped: a bias left out by mistake is a drafter that is never right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.shards import INDEX, SINGLE, only_pickles
from hasten.core.errors import CheckpointError
from hasten.layers.layer_context import LayerContext
from hasten.layers.medusa import LmHead, MedusaHeads, MedusaSpec

ORIGINAL = "medusa_lm_head.safetensors"
READABLE = ("F32", "BF16", "F16", "F64")
_SHARED = ("lm_head.weight", "lm_heads.0.weight")  # either name of one projection for all heads
_PREFIXES = ("medusa_heads.", "medusa_head.")
_LAYER = re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)")
_BLOCK = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_PROJECTION = re.compile(r"(\d+)\.(\d+)\.weight")
_CONVERT = (
    "Convert it once, where you trust the file: import torch, safetensors.torch as s; "
    "s.save_file({k: v.clone() for k, v in torch.load(FILE, weights_only=True).items()}, 'medusa_lm_head.safetensors')"
)


@dataclass(frozen=True, slots=True)
class MedusaCheckpoint:
    heads: MedusaHeads
    accuracies: tuple[tuple[float, ...], ...] | None  # [head][rank] of a tree's choice; None: not measured


def read_medusa(folder: Path, *, hidden_size: int, vocab_size: int, layer_context: LayerContext) -> MedusaCheckpoint:
    """The heads of a folder, for a model of this hidden size and vocabulary.

    Raises ``CheckpointError`` for pickles, for heads of another model (with both numbers), and for tensors that are missing,
    unexpected, or of another shape (with all of them).
    """
    checkpoint = Checkpoint.open(folder, single=_weights_file(folder))
    names = _canonical_names(checkpoint)
    spec = _spec(checkpoint, names, hidden_size, vocab_size)
    _check_tensors(checkpoint, names, spec)
    heads = MedusaHeads(spec, layer_context)
    _fill(heads, checkpoint, names)
    return MedusaCheckpoint(heads.eval(), _accuracies(checkpoint, spec))


def write_medusa(
    folder: Path,
    heads: MedusaHeads,
    *,
    dtype: torch.dtype,
    accuracies: Sequence[Sequence[float]] | None = None,
    base_model: str | None = None,
) -> None:
    """vLLM's layout, with matrices and biases in ``dtype``. The heads are dense."""
    spec = heads.spec
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_stored_name(name, spec): tensor.detach().to(dtype).contiguous() for name, tensor in heads.named_parameters()}
    if heads.token_map is not None:
        tensors["token_map"] = heads.token_map
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    config: dict[str, Any] = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "num_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "truncated_vocab_size": spec.truncated_vocab_size,
        "medusa_fc_bias": spec.bias,
        "original_lm_head": spec.lm_head != "own",
        "dtype": str(dtype).removeprefix("torch."),
    }
    config |= {} if base_model is None else {"base_model_name_or_path": base_model}
    config |= {} if accuracies is None else {"head_accuracies": [list(head) for head in accuracies]}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _stored_name(parameter: str, spec: MedusaSpec) -> str:
    """From a parameter of ``MedusaHeads`` to vLLM's name for it."""
    name = parameter.replace(".format.", ".")
    return "lm_head.weight" if spec.lm_head == "shared" and name == "lm_heads.0.weight" else name


def _weights_file(folder: Path) -> str:
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file() or not folder.is_dir():
        return SINGLE
    if (folder / ORIGINAL).is_file():
        return ORIGINAL
    pickles = only_pickles(folder)
    if pickles:
        raise CheckpointError(
            f"{folder} has its heads in a pickle file, and pickle can run code when it is read, so hasten never does",
            got=", ".join(pickles),
            allowed=f"{SINGLE} or {ORIGINAL}",
            remedy=_CONVERT,
        )
    return SINGLE


def _canonical_names(checkpoint: Checkpoint) -> dict[str, str]:
    """vLLM's name of every tensor -> the name that it is stored under."""
    bare = {name: name for name in checkpoint.tensors}
    for prefix in _PREFIXES:
        if bare and all(name.startswith(prefix) for name in bare):
            bare = {name.removeprefix(prefix): stored for name, stored in bare.items()}
    if not any(_LAYER.fullmatch(name) for name in bare):
        return bare
    depth = 1 + max(int(found[2]) for name in bare if (found := _LAYER.fullmatch(name)))
    names = {}
    for name, stored in bare.items():
        if found := _LAYER.fullmatch(name):
            name = f"blocks.{found[1]}.layers.{found[2]}.{found[3]}"
        elif (found := _PROJECTION.fullmatch(name)) and int(found[2]) == depth:
            name = f"lm_heads.{found[1]}.weight"
        names[name] = stored
    return names


def _spec(checkpoint: Checkpoint, names: Mapping[str, str], hidden_size: int, vocab_size: int) -> MedusaSpec:
    """From config.json, and where that says nothing from the tensors."""
    config = checkpoint.config
    _check_model(checkpoint, names, hidden_size, vocab_size)
    blocks = [found for name in names if (found := _BLOCK.fullmatch(name))]
    held = {"num_heads": 1, "num_hidden_layers": 2}  # by the group of ``_BLOCK`` that counts them
    counts = {key: 1 + max((int(block[group]) for block in blocks), default=-1) for key, group in held.items()}
    if not any(".linear." in stored for stored in names.values()):
        # The original's own configurations name other numbers than their files hold, and its code goes by the file.
        counts = {key: _integer(checkpoint, key, count) for key, count in counts.items()}
    lm_head: LmHead = "own"
    if config.get("original_lm_head"):
        lm_head = "shared" if any(name in names for name in _SHARED) else "model"
    truncated = _integer(checkpoint, "truncated_vocab_size", vocab_size)
    if truncated > vocab_size or min(counts.values()) < 1:
        raise CheckpointError(
            f"{checkpoint.folder} does not hold Medusa heads for {vocab_size:,} tokens",
            got=f"truncated_vocab_size={truncated}, {counts}",
            allowed=f"up to {vocab_size} tokens, and heads of at least one layer",
        )
    return MedusaSpec(
        num_heads=counts["num_heads"],
        num_layers=counts["num_hidden_layers"],
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        truncated_vocab_size=truncated,
        bias=bool(config.get("medusa_fc_bias", any(name.endswith(".bias") for name in names))),
        lm_head=lm_head,
    )


def _check_model(checkpoint: Checkpoint, names: Mapping[str, str], hidden_size: int, vocab_size: int) -> None:
    """Whether the heads are for a model of these sizes, by what config.json says or else by the tensors."""
    shapes = {name: checkpoint.tensors[stored].shape for name, stored in names.items()}
    width = next((shape[-1] for name, shape in shapes.items() if _BLOCK.fullmatch(name) and shape), hidden_size)
    rows = next((shape[0] for name, shape in shapes.items() if name.startswith("lm_head") and shape), vocab_size)
    found = {
        "hidden size": (_integer(checkpoint, "hidden_size", width), hidden_size),
        "vocabulary": (_integer(checkpoint, "vocab_size", vocab_size if "token_map" in names else rows), vocab_size),
    }
    for what, (theirs, ours) in found.items():
        if theirs != ours:
            raise CheckpointError(
                f"the Medusa heads in {checkpoint.folder} are for a model of another {what}",
                got=f"{theirs:,}",
                allowed=f"{ours:,}, the model's",
                remedy="Use heads that were trained for this model, or train some: hasten train medusa",
            )


def _integer(checkpoint: Checkpoint, name: str, default: int) -> int:
    value = checkpoint.config.get(name)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json of {checkpoint.folder} does not describe Medusa heads",
            got=f"{name}={value!r}",
            allowed="a whole number from 1",
            remedy="Correct config.json, or download the heads again",
        )
    return value


def _check_tensors(checkpoint: Checkpoint, names: Mapping[str, str], spec: MedusaSpec) -> None:
    expected = _shapes(spec, names)
    faults = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in names]
    for name, stored in names.items():
        entry = checkpoint.tensors[stored]
        shapes = [expected[name]] if name in expected else []
        if shapes and name.startswith("lm_head") and spec.truncated:
            shapes.append((spec.vocab_size, spec.hidden_size))  # the whole projection, of which the heads use a part
        kinds = ("I64", "I32") if name == "token_map" else READABLE
        if not shapes:
            faults.append(f"{stored} {list(entry.shape)} is not expected")
        elif entry.shape not in shapes:
            faults.append(f"{stored} is {list(entry.shape)}, expected {' or '.join(str(list(shape)) for shape in shapes)}")
        elif entry.dtype not in kinds:
            faults.append(f"{stored} is {entry.dtype}, expected {' or '.join(kinds)}")
    if faults:
        raise CheckpointError(
            f"the tensors of {checkpoint.folder} are not those of {spec.num_heads} Medusa heads of {spec.num_layers} layers "
            f"({len(faults)} fault{'s' if len(faults) > 1 else ''}): {'; '.join(faults)}",
            remedy="Check that config.json belongs to these weights, and download them again if it does",
        )


def _shapes(spec: MedusaSpec, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Of every tensor, by vLLM's names."""
    size = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(spec.num_heads):
        for layer in range(spec.num_layers):
            shapes[f"blocks.{head}.layers.{layer}.weight"] = (size, size)
            if spec.bias:
                shapes[f"blocks.{head}.layers.{layer}.bias"] = (size,)
    if spec.lm_head == "own":
        shapes |= {f"lm_heads.{head}.weight": (spec.truncated_vocab_size, size) for head in range(spec.num_heads)}
    if spec.lm_head == "shared":
        shapes[next(name for name in _SHARED if name in names)] = (spec.truncated_vocab_size, size)
    if spec.truncated:
        shapes["token_map"] = (spec.truncated_vocab_size,)
    return shapes


def _fill(heads: MedusaHeads, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
    spec = heads.spec
    if heads.token_map is not None:
        heads.token_map.copy_(checkpoint.read(names["token_map"]))
        low, high = int(heads.token_map.min()), int(heads.token_map.max())
        if low < 0 or high >= spec.vocab_size:
            raise CheckpointError(
                f"token_map of {checkpoint.folder} names tokens that the model does not have",
                got=f"{low} to {high}",
                allowed=f"0 to {spec.vocab_size - 1}",
            )
    for name, stored in names.items():
        if name == "token_map":
            continue
        tensor = checkpoint.read(stored)
        if name.startswith("lm_head") and len(tensor) > spec.truncated_vocab_size:
            tensor = tensor[heads.token_map]
        path, _, part = name.replace("lm_head.weight", "lm_heads.0.weight").rpartition(".")
        linear: Any = heads.get_submodule(path)
        if part == "weight":
            linear.format.load("weight", tensor, slice(None), transposed=False)
        else:
            linear.bias.copy_(tensor)


def _accuracies(checkpoint: Checkpoint, spec: MedusaSpec) -> tuple[tuple[float, ...], ...] | None:
    found = checkpoint.config.get("head_accuracies")
    if found is None:
        return None
    sound = isinstance(found, list) and len(found) == spec.num_heads and all(isinstance(head, list) and head for head in found)
    if not sound or not all(isinstance(share, int | float) and 0 <= share <= 1 for head in found for share in head):
        raise CheckpointError(
            f"head_accuracies in config.json of {checkpoint.folder} are not accuracies",
            allowed=f"{spec.num_heads} lists of shares from 0 to 1, the likeliest guess first",
            remedy="Leave them out, or train the heads again",
        )
    return tuple(tuple(float(share) for share in head) for head in found)
