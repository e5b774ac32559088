"""EAGLE-3 heads for a target decoder: checking that a head belongs to the target, and loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.formats.eagle3 import Eagle3Config, open_eagle3, read_target_ids
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.layers.eagle import EagleHead, EagleSpec
from hasten.layers.formats.base import WeightFormatFactory
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Embedding
from hasten.models.config import MAX_LAYERS
from hasten.models.decoder import Decoder
from hasten.models.family import find_family
from hasten.models.llama_like import layer_weights
from hasten.models.spec import DecoderSpec
from hasten.models.weights import Progress, WeightMap, WeightSource, allocation_errors, expected_tensors, load_weights

EMBEDDING = "embed_tokens.weight"
LAYER_TYPES = ("llama", "qwen3")
_CHUNK = 4096  # embedding rows compared at a time


@dataclass(frozen=True, slots=True)
class LoadedEagle:
    head: EagleHead
    config: Eagle3Config


def default_aux_layers(num_layers: int) -> tuple[int, int, int]:
    """Return a low, a middle and a high layer, counted from 1.

    A target of seven layers or more has those of the paper's code.
    """
    return (2, num_layers // 2, num_layers - 3) if num_layers >= 7 else (1, (num_layers + 1) // 2, num_layers)


def eagle_spec(
    config: Eagle3Config, target: DecoderSpec, folder: Path, *, own_embedding: bool = False, max_layers: int = MAX_LAYERS
) -> EagleSpec:
    """Return the head that ``config`` describes. ``max_layers``: the number of tensors in the weights.

    Raises ``CheckpointError`` (``UnsupportedModel``) that lists all sizes that do not match the target.
    """
    layer = find_family(config.layer).spec(config.layer, max_layers)
    faults = []
    if layer.model_type not in LAYER_TYPES:
        faults.append(f"its layer is of type {layer.model_type!r} (allowed: {' or '.join(LAYER_TYPES)})")
    target_size = config.target_size or layer.hidden_size
    if target_size != target.hidden_size:
        faults.append(f"its target has hidden size {target_size}, this model {target.hidden_size}")
    elif layer.hidden_size != target.hidden_size and not own_embedding:
        faults.append(f"it has hidden size {layer.hidden_size} and no embedding of its own, this model's has {target.hidden_size}")
    if layer.vocab_size != target.vocab_size:
        faults.append(f"its target has a vocabulary of {layer.vocab_size:,} tokens, this model one of {target.vocab_size:,}")
    if config.draft_vocab_size > target.vocab_size:
        faults.append(f"its draft vocabulary has {config.draft_vocab_size:,} tokens, this model's has {target.vocab_size:,}")
    aux_layers = config.aux_layers or default_aux_layers(target.num_layers)
    if max(aux_layers) > target.num_layers:
        faults.append(f"its aux layers are {', '.join(map(str, aux_layers))}, this model has {target.num_layers} layers")
    if faults:
        raise CheckpointError(
            f"the EAGLE-3 head in {folder} does not belong to this {target.model_type} model: {'; '.join(faults)}",
            remedy="Use a head that was trained for this very model, or train one with: hasten train eagle",
        )
    return EagleSpec(
        hidden_size=layer.hidden_size,
        target_size=target_size,
        target_vocab_size=target.vocab_size,
        draft_vocab_size=config.draft_vocab_size,
        aux_layers=aux_layers,
        layer=layer.layers[0],
        norm=layer.norm,
        norm_before_residual=config.norm_before_residual,
    )


def eagle_weights(spec: EagleSpec, *, own_embedding: bool = False) -> WeightMap:
    return (
        WeightSource("fc.weight", "fc.format.weight"),
        WeightSource("layers.0.hidden_norm.weight", "layer.hidden_norm.weight"),
        *layer_weights("layers.0", "layer", spec.layer),
        WeightSource("norm.weight", "norm.weight"),
        WeightSource("lm_head.weight", "lm_head.format.weight"),
        *((WeightSource(EMBEDDING, "embedding.format.weight"),) if own_embedding else ()),
    )


def eagle_tensors(head: EagleHead, *, own_embedding: bool = False) -> dict[str, Tensor]:
    """Return the checkpoint tensors of a dense head, as ``load_eagle`` reads them."""
    return {source.name: source.rows(head) for source in eagle_weights(head.spec, own_embedding=own_embedding)}


def load_eagle(
    folder: Path, target: Decoder, *, formats: WeightFormatFactory | None = None, progress: Progress | None = None
) -> LoadedEagle:
    """Load the head in ``folder``, in the dtype of ``target``.

    The head has the target's embedding unless it brings another. Without ``formats`` all matrices are dense. Raises
    ``CheckpointError`` (``ModelNotFound``, ``UnsupportedModel``) with all faults before it reads a large tensor.
    """
    checkpoint, config = open_eagle3(folder)
    own = EMBEDDING in checkpoint.tensors
    spec = eagle_spec(config, target.spec, folder, own_embedding=own, max_layers=len(checkpoint.tensors))
    meta_context = LayerContext(target.ops, DenseFormatFactory(target.ops, target.dtype, "meta"), target.dtype, "meta")
    expected = expected_tensors(eagle_weights(spec, own_embedding=own), _allocate(spec, target, meta_context, own))
    ignored = {name: (entry.shape, (entry.dtype,)) for name, entry in checkpoint.tensors.items() if name in ("d2t", "t2d")}
    checkpoint.check_tensors(ignored | expected, "the EAGLE-3 head that its config.json describes")
    own = own and not _is_target_embedding(checkpoint, spec, target)
    target_ids_D = read_target_ids(checkpoint, spec.draft_vocab_size, spec.target_vocab_size)
    layer_context = LayerContext(target.ops, formats or DenseFormatFactory(target.ops, target.dtype), target.dtype)
    with allocation_errors(str(folder)):
        head = _allocate(spec, target, layer_context, own)
        load_weights(head, checkpoint, eagle_weights(spec, own_embedding=own), progress)
    head.target_ids.copy_(target_ids_D)
    return LoadedEagle(head.eval(), config)


def _allocate(spec: EagleSpec, target: Decoder, layer_context: LayerContext, own_embedding: bool) -> EagleHead:
    own_format = layer_context.formats.table(spec.target_vocab_size, spec.hidden_size) if own_embedding else None
    return EagleHead(spec, Embedding(own_format or target.embedding.format), layer_context)


def _is_target_embedding(checkpoint: Checkpoint, spec: EagleSpec, target: Decoder) -> bool:
    """Whether the head's embedding is a copy of the target's, so that one embedding serves both."""
    if spec.hidden_size != spec.target_size:
        return False
    stored = checkpoint.read(EMBEDDING)
    for start in range(0, spec.target_vocab_size, _CHUNK):
        chunk = stored[start : start + _CHUNK]
        rows = target.embed(torch.arange(start, start + len(chunk), dtype=torch.int64, device="cpu"))
        if not torch.equal(rows, chunk.to(rows.dtype)):
            return False
    return True
