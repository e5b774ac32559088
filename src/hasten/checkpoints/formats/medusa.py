"""Medusa heads on disk: vLLM's layout is read and written, the original one is read.

Cai et al., 2024, arXiv 2401.10774.

::

    vLLM      blocks.{head}.layers.{layer}.weight|bias    lm_heads.{head}.weight    token_map
              original_lm_head: lm_head.weight (or lm_heads.0.weight) once for all heads, or nothing: the model's own
    original  {head}.{layer}.linear.weight|bias           {head}.{number of layers}.weight

An unexpected tensor is refused, not ignored: heads without their biases would load and never draft a right token.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.checkpoints.finite_weights import finite_weights
from hasten.checkpoints.json_values import are_shares, is_integer
from hasten.checkpoints.reader import FLOAT_DTYPES, Checkpoint, ExpectedTensor
from hasten.checkpoints.shards import INDEX, SINGLE, TensorEntry, refuse_pickles, write_checkpoint
from hasten.checkpoints.tensor_files import SafetensorsFiles
from hasten.core.errors import CheckpointError
from hasten.layers.formats.base import check_finite
from hasten.layers.layer_context import LayerContext
from hasten.layers.medusa import LmHead, MedusaHeads, MedusaSpec

ORIGINAL = "medusa_lm_head.safetensors"
_PREFIXES = ("medusa_heads.", "medusa_head.")
_ORIGINAL_LAYER = re.compile(r"(\d{1,9})\.(\d{1,9})\.linear\.(weight|bias)")
_ORIGINAL_LM_HEAD = re.compile(r"(\d{1,9})\.(\d{1,9})\.weight")
_LAYER = re.compile(r"blocks\.(\d{1,9})\.layers\.(\d{1,9})\.(weight|bias)")
_CONVERT = (
    "Convert the file if you trust it: import torch, safetensors.torch as s; "
    f"s.save_file({{k: v.clone() for k, v in torch.load(FILE, weights_only=True).items()}}, {ORIGINAL!r})"
)


@dataclass(frozen=True, slots=True)
class MedusaCheckpoint:
    """Medusa heads, and the measured accuracy of their choices."""

    heads: MedusaHeads
    accuracies: tuple[tuple[float, ...], ...] | None  # [head][rank of a choice]; None: not measured


def read_medusa(folder: Path, *, hidden_size: int, vocab_size: int, layer_context: LayerContext) -> MedusaCheckpoint:
    """Return the heads of a folder, for a model of this hidden size and vocabulary.

    Raises ``CheckpointError`` for pickles, for heads of another model (with both numbers), and for tensors that are missing,
    unexpected, or of another shape (with all of them).
    """
    refuse_pickles(folder, SINGLE, INDEX, ORIGINAL, remedy=_CONVERT)
    original = os.path.isfile(folder / ORIGINAL) and not any(os.path.isfile(folder / name) for name in (SINGLE, INDEX))
    checkpoint = Checkpoint.open(folder, single=ORIGINAL if original else SINGLE)
    tensors = _canonical_names(checkpoint)
    checkpoint = dataclasses.replace(checkpoint, tensors=tensors, files=SafetensorsFiles(folder, tensors))
    _check_model_sizes(checkpoint, hidden_size, vocab_size)
    spec = _read_spec(checkpoint, hidden_size, vocab_size)
    contents = f"{spec.num_heads} Medusa heads of {spec.num_layers} layers"
    checkpoint.check_tensors(_expected_tensors(checkpoint, spec), contents)
    heads = MedusaHeads(spec, layer_context)
    _load_tensors(heads, checkpoint)
    return MedusaCheckpoint(heads.eval(), _read_accuracies(checkpoint, spec))


def write_medusa(
    folder: Path,
    heads: MedusaHeads,
    *,
    dtype: torch.dtype,
    accuracies: Sequence[Sequence[float]] | None = None,
    base_model: str | None = None,
) -> None:
    """Write dense heads in vLLM's layout, with matrices and biases in ``dtype``."""
    spec = heads.spec
    tensors = {name.replace(".format.", "."): parameter.to(dtype) for name, parameter in heads.named_parameters()}
    if spec.lm_head == "shared":
        tensors["lm_head.weight"] = tensors.pop("lm_heads.0.weight")
    if heads.token_map is not None:
        tensors["token_map"] = heads.token_map
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
    config |= {} if accuracies is None else {"head_accuracies": [list(ranks) for ranks in accuracies]}
    write_checkpoint(folder, tensors, config)


def _canonical_names(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """Return the entries by vLLM's names; a shared lm_head is ``lm_heads.0.weight``."""
    tensors = dict(checkpoint.tensors)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): entry for name, entry in tensors.items()}
    num_layers = 1 + max((int(match[2]) for name in tensors if (match := _ORIGINAL_LAYER.fullmatch(name))), default=-1)
    canonical = {}
    for name, entry in tensors.items():
        if match := _ORIGINAL_LAYER.fullmatch(name):
            name = f"blocks.{match[1]}.layers.{match[2]}.{match[3]}"
        elif num_layers and (match := _ORIGINAL_LM_HEAD.fullmatch(name)) and int(match[2]) == num_layers:
            name = f"lm_heads.{match[1]}.weight"
        canonical[name] = entry
    if checkpoint.config.get("original_lm_head") and "lm_heads.0.weight" not in canonical and "lm_head.weight" in canonical:
        canonical["lm_heads.0.weight"] = canonical.pop("lm_head.weight")
    return canonical


def _check_model_sizes(checkpoint: Checkpoint, hidden_size: int, vocab_size: int) -> None:
    """Raise ``CheckpointError`` if config.json, or else the tensors, belong to a model of other sizes."""
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.items() if entry.shape}
    stored_size = next((shape[-1] for name, shape in shapes.items() if _LAYER.fullmatch(name)), hidden_size)
    stored_vocab = next((shape[0] for name, shape in shapes.items() if name.startswith("lm_head")), vocab_size)
    if "token_map" in checkpoint.tensors:
        stored_vocab = vocab_size
    for what, head_size, model_size in (
        ("hidden size", _read_size(checkpoint, "hidden_size", stored_size), hidden_size),
        ("vocabulary", _read_size(checkpoint, "vocab_size", stored_vocab), vocab_size),
    ):
        if head_size != model_size:
            raise CheckpointError(
                f"the Medusa heads in {checkpoint.folder} are for a model of another {what}",
                got=f"{head_size:,}",
                allowed=f"{model_size:,}, the model's",
                remedy="Use heads that were trained for this model, or train some: hasten train medusa",
            )


def _read_spec(checkpoint: Checkpoint, hidden_size: int, vocab_size: int) -> MedusaSpec:
    """Return the spec of config.json, completed from the tensors."""
    config, tensors = checkpoint.config, checkpoint.tensors
    layers = [match for name in tensors if (match := _LAYER.fullmatch(name))]
    num_heads, num_layers = (1 + max((int(layer[group]) for layer in layers), default=-1) for group in (1, 2))
    if not any(".linear." in entry.name for entry in tensors.values()):
        # Configurations of the original layout have other counts than their files, and the original code follows the files.
        num_heads = _read_size(checkpoint, "num_heads", num_heads)
        num_layers = _read_size(checkpoint, "num_hidden_layers", num_layers)
    lm_head: LmHead = "own"
    if config.get("original_lm_head"):
        lm_head = "shared" if "lm_heads.0.weight" in tensors else "model"
    truncated_vocab_size = _read_size(checkpoint, "truncated_vocab_size", vocab_size)
    # Every layer of a head is a tensor, so nothing is built for counts that the weights do not have.
    if truncated_vocab_size > vocab_size or not 1 <= num_heads * num_layers <= len(tensors):
        raise CheckpointError(
            f"{checkpoint.folder} does not hold Medusa heads for {vocab_size:,} tokens",
            got=f"truncated_vocab_size={truncated_vocab_size}, {num_heads} heads of {num_layers} layers",
            allowed=f"up to {vocab_size} tokens, and from one layer of one head to the {len(tensors)} tensors that are stored",
        )
    return MedusaSpec(
        num_heads=num_heads,
        num_layers=num_layers,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        truncated_vocab_size=truncated_vocab_size,
        bias=bool(config.get("medusa_fc_bias", any(name.endswith(".bias") for name in tensors))),
        lm_head=lm_head,
    )


def _read_size(checkpoint: Checkpoint, name: str, default: int) -> int:
    value = checkpoint.config.get(name)
    if value is None:
        value = default
    if not is_integer(value):
        raise CheckpointError(
            f"config.json of {checkpoint.folder} does not describe Medusa heads",
            got=f"{name}={value!r}",
            allowed="a whole number from 1",
            remedy="Correct config.json, or download the heads again",
        )
    return value


def _expected_tensors(checkpoint: Checkpoint, spec: MedusaSpec) -> dict[str, ExpectedTensor]:
    size = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(spec.num_heads):
        for layer in range(spec.num_layers):
            shapes[f"blocks.{head}.layers.{layer}.weight"] = (size, size)
            if spec.bias:
                shapes[f"blocks.{head}.layers.{layer}.bias"] = (size,)
    for head in range({"model": 0, "shared": 1, "own": spec.num_heads}[spec.lm_head]):
        name, full_shape = f"lm_heads.{head}.weight", (spec.vocab_size, size)
        # Truncated heads may store the full projection, of which they use the rows in token_map.
        is_full = name in checkpoint.tensors and checkpoint.tensors[name].shape == full_shape
        shapes[name] = full_shape if is_full else (spec.truncated_vocab_size, size)
    expected: dict[str, ExpectedTensor] = {name: (shape, FLOAT_DTYPES) for name, shape in shapes.items()}
    if spec.truncated:
        expected["token_map"] = ((spec.truncated_vocab_size,), ("I64", "I32"))
    return expected


def _load_tensors(heads: MedusaHeads, checkpoint: Checkpoint) -> None:
    spec = heads.spec
    if heads.token_map is not None:
        heads.token_map.copy_(checkpoint.read("token_map"))
        low, high = int(heads.token_map.min()), int(heads.token_map.max())
        if low < 0 or high >= spec.vocab_size:
            raise CheckpointError(
                f"token_map of {checkpoint.folder} names tokens that the model does not have",
                got=f"{low} to {high}",
                allowed=f"0 to {spec.vocab_size - 1}",
            )
    for name in checkpoint.tensors:
        if name == "token_map":
            continue
        tensor = checkpoint.read(name)
        if name.startswith("lm_head") and len(tensor) > spec.truncated_vocab_size:
            tensor = tensor[heads.token_map]
        path, _, part = name.rpartition(".")
        linear: Any = heads.get_submodule(path)
        with finite_weights(name, checkpoint.folder):
            if part == "weight":
                linear.format.load("weight", tensor, slice(None), transposed=False)
            else:
                check_finite(linear.bias.copy_(tensor))


def _read_accuracies(checkpoint: Checkpoint, spec: MedusaSpec) -> tuple[tuple[float, ...], ...] | None:
    accuracies = checkpoint.config.get("head_accuracies")
    if accuracies is None:
        return None
    is_list = isinstance(accuracies, list) and len(accuracies) == spec.num_heads
    if not is_list or not all(ranks and are_shares(ranks) for ranks in accuracies):
        raise CheckpointError(
            f"head_accuracies in config.json of {checkpoint.folder} are not accuracies",
            allowed=f"{spec.num_heads} lists of shares from 0 to 1, the most likely choice first",
            remedy="Leave them out, or train the heads again",
        )
    return tuple(tuple(float(share) for share in ranks) for ranks in accuracies)
