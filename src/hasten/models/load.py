"""``load_decoder``: from a checkpoint folder to a decoder that is ready to run. Weights go straight from the file into place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError, InvalidOption, nearest
from hasten.layers.formats.base import WeightFormat, WeightFormatFactory
from hasten.models.decoder import Decoder
from hasten.models.family import ModelFamily, find_family
from hasten.models.match import match
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap
from hasten.ops.base import Ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
HEAD, EMBEDDING = "lm_head.format.weight", "embedding.format.weight"

Progress = Callable[[int, int], None]  # (bytes read, bytes in all)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    decoder: Decoder
    spec: DecoderSpec
    config: dict[str, Any]
    generation_config: dict[str, Any]
    folder: Path
    dtype: torch.dtype


def load_decoder(
    folder: Path,
    *,
    dtype: str = "auto",
    ops: Ops,
    formats: Callable[[torch.dtype], WeightFormatFactory] | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Reads config.json and safetensors of a local folder. ``dtype`` "auto" is the checkpoint's own.
    ``formats``, for that dtype, says how matrices are stored: dense if left out.

    Raises ``CheckpointError`` (``ModelNotFound``, ``UnsupportedModel``) with every fault of the folder, before any weight is read,
    and ``InvalidOption`` for an unknown ``dtype``.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InvalidOption(
            "unknown dtype", got=repr(dtype), allowed=f"auto, {', '.join(DTYPES)}", remedy=nearest(dtype, [*DTYPES, "auto"])
        )
    checkpoint = Checkpoint.open(folder)
    family = find_family(checkpoint.config)
    spec = _settle_tying(checkpoint, family, family.spec(checkpoint.config))
    chosen = DTYPES[_own_dtype(checkpoint) if dtype == "auto" else dtype]
    # On the meta device nothing is allocated: a checkpoint of the wrong shape fails before it takes memory.
    sources = match(checkpoint, family, spec, Decoder(spec, ops, chosen, "meta"))
    decoder = Decoder(spec, ops, chosen, formats=None if formats is None else formats(chosen))
    fill(decoder, checkpoint, sources, progress)
    return LoadedModel(decoder.eval(), spec, checkpoint.config, checkpoint.generation_config, folder, chosen)


def check_vocabulary(draft: LoadedModel, name: str, vocab_size: int, remedy: str) -> None:
    """Raises ``InvalidOption``, with both numbers, if the draft model is not for a model of this vocabulary."""
    if draft.spec.vocab_size != vocab_size:
        raise InvalidOption(
            "the draft model has another vocabulary than the model",
            got=f"{draft.spec.vocab_size} tokens in {name}",
            allowed=f"{vocab_size} tokens",
            remedy=remedy,
        )


def _own_dtype(checkpoint: Checkpoint) -> str:
    """What the configuration says under its new or old key, or else what the first matrix is stored in."""
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if named is None:
        stored = next((entry.dtype for entry in checkpoint.tensors.values() if entry.dtype in STORED), "F32")
        return STORED[stored]
    name = str(named).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(
            f"config.json of {checkpoint.folder} asks for a dtype that hasten does not compute in",
            got=repr(named),
            allowed=", ".join(DTYPES),
            remedy="Choose one with the option dtype",
        )
    return name


def _settle_tying(checkpoint: Checkpoint, family: ModelFamily, spec: DecoderSpec) -> DecoderSpec:
    """A configuration may say that the projection is the embedding while the file holds a different one: then the file is right."""
    if not spec.tied:
        return spec
    untied = dataclasses.replace(spec, tied=False)
    names = {source.target: source.name for source in family.weights(untied) if source.target in (HEAD, EMBEDDING)}
    head, embedding = names[HEAD], names[EMBEDDING]
    if embedding not in checkpoint.tensors:
        embedding = embedding.removeprefix(family.prefix)
    stored = [checkpoint.tensors[name] for name in (head, embedding) if name in checkpoint.tensors]
    if len(stored) < 2 or any(entry.dtype not in STORED for entry in stored):
        return spec
    alike = stored[0].dtype == stored[1].dtype and torch.equal(checkpoint.read(head), checkpoint.read(embedding))
    return spec if alike else untied


def fill(module: nn.Module, checkpoint: Checkpoint, sources: WeightMap, progress: Progress | None) -> None:
    """Reads every tensor of ``sources`` into its parameter of ``module``."""
    total = sum(checkpoint.tensors[source.name].nbytes for source in sources)
    done = 0
    for source in sources:
        path, _, part = source.target.rpartition(".")
        owner: Any = module.get_submodule(path)
        rows = slice(None) if source.rows is None else slice(*source.rows)
        tensor = checkpoint.read(source.name)
        if path.endswith(".format"):
            weight_format: WeightFormat = owner
            weight_format.load(part, tensor, rows, transposed=source.transposed)
        else:
            owner.get_parameter(part)[rows].copy_(tensor)
        done += checkpoint.tensors[source.name].nbytes
        if progress is not None:
            progress(done, total)
