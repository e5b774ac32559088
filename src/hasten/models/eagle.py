"""EAGLE-3 heads beside their target: what a head must be to belong to a model, and loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.formats.eagle3 import open_eagle3, read_target_ids
from hasten.checkpoints.formats.eagle3_config import Eagle3Config
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.layers.eagle import EagleHead, EagleSpec
from hasten.layers.embedding import Embedding
from hasten.layers.formats.base import WeightFormatFactory
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.models.decoder import Decoder
from hasten.models.family import find_family
from hasten.models.llama_like import layer_weights
from hasten.models.load import Progress, fill
from hasten.models.match import unfit
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap, WeightSource

EMBEDDING = "embed_tokens.weight"
LAYER_FAMILIES = ("llama", "qwen3")
_CHUNK = 4096  # embedding rows compared at a time


@dataclass(frozen=True, slots=True)
class LoadedEagle:
    head: EagleHead
    config: Eagle3Config


def default_aux_layers(num_layers: int) -> tuple[int, int, int]:
    """After how many layers the fused states are taken: a low, a middle and a high one; where there are seven, as the paper did."""
    return (2, num_layers // 2, num_layers - 3) if num_layers >= 7 else (1, (num_layers + 1) // 2, num_layers)


def eagle_spec(config: Eagle3Config, target: DecoderSpec, folder: Path, *, own_embedding: bool = False) -> EagleSpec:
    """What ``config`` describes. Raises ``CheckpointError`` (``UnsupportedModel``) with every number that is not the target's."""
    family = find_family(config.layer)
    layer = family.spec(config.layer)
    faults = []
    if layer.family not in LAYER_FAMILIES:
        faults.append(f"its layer is of type {layer.family!r} (allowed: {' or '.join(LAYER_FAMILIES)})")
    target_size = config.target_size or layer.hidden_size
    if target_size != target.hidden_size:
        faults.append(f"its target has hidden size {target_size}, this model {target.hidden_size}")
    elif layer.hidden_size != target.hidden_size and not own_embedding:
        faults.append(f"it has hidden size {layer.hidden_size} and no embedding of its own, this model's has {target.hidden_size}")
    if layer.vocab_size != target.vocab_size:
        faults.append(f"its target has a vocabulary of {layer.vocab_size:,} tokens, this model one of {target.vocab_size:,}")
    if config.draft_vocab_size > target.vocab_size:
        faults.append(f"it guesses among {config.draft_vocab_size:,} tokens, this model has {target.vocab_size:,}")
    states = config.aux_layers or default_aux_layers(target.num_layers)
    if max(states) > target.num_layers:
        faults.append(f"it reads the states after layers {', '.join(map(str, states))}, this model has {target.num_layers}")
    if faults:
        raise CheckpointError(
            f"the EAGLE-3 head in {folder} does not belong to this {target.family} model: {'; '.join(faults)}",
            remedy="Use a head that was trained for this very model, or train one with: hasten train eagle",
        )
    return EagleSpec(
        hidden_size=layer.hidden_size,
        target_size=target_size,
        target_vocab_size=target.vocab_size,
        draft_vocab_size=config.draft_vocab_size,
        aux_layers=states,
        layer=layer.layers[0],
        norm=layer.norm,
        norm_before_residual=config.norm_before_residual,
    )


def eagle_weights(spec: EagleSpec, *, own_embedding: bool = False) -> WeightMap:
    """Which checkpoint tensor fills which parameter of ``EagleHead``."""
    return (
        WeightSource("fc.weight", "fc.format.weight"),
        WeightSource("layers.0.hidden_norm.weight", "layer.hidden_norm.weight"),
        *layer_weights("layers.0", "layer", spec.layer),
        WeightSource("norm.weight", "norm.weight"),
        WeightSource("lm_head.weight", "lm_head.format.weight"),
        *((WeightSource(EMBEDDING, "embedding.format.weight"),) if own_embedding else ()),
    )


def eagle_tensors(head: EagleHead, *, own_embedding: bool = False) -> dict[str, Tensor]:
    """The checkpoint tensors of a dense head: what ``load_eagle`` reads, written back."""
    tensors = {}
    for source in eagle_weights(head.spec, own_embedding=own_embedding):
        parameter = head.get_parameter(source.target)
        tensors[source.name] = parameter if source.rows is None else parameter[slice(*source.rows)]
    return tensors


def load_eagle(
    folder: Path, target: Decoder, *, formats: WeightFormatFactory | None = None, progress: Progress | None = None
) -> LoadedEagle:
    """The head in ``folder`` for ``target``, in its dtype, with its embedding unless the head brings another. Without ``formats``
    all matrices are dense.

    Raises ``CheckpointError`` (``ModelNotFound``, ``UnsupportedModel``) with every fault, before a large tensor is read.
    """
    checkpoint, config = open_eagle3(folder)
    own = EMBEDDING in checkpoint.tensors
    spec = eagle_spec(config, target.spec, folder, own_embedding=own)
    sources = _match(checkpoint, spec, target, own)
    if own and _is_targets(checkpoint, spec, target):
        own, sources = False, eagle_weights(spec)
    target_ids_D = read_target_ids(checkpoint, spec.draft_vocab_size, spec.target_vocab_size)
    layer_context = LayerContext(target.ops, formats or DenseFormatFactory(target.ops, target.dtype), target.dtype)
    head = EagleHead(spec, _embedding(spec, target, layer_context, own), layer_context)
    fill(head, checkpoint, sources, progress)
    head.target_ids.copy_(target_ids_D)
    return LoadedEagle(head.eval(), config)


def _embedding(spec: EagleSpec, target: Decoder, layer_context: LayerContext, own: bool) -> Embedding:
    rows, size = spec.target_vocab_size, spec.hidden_size
    return Embedding(layer_context.formats.table(rows, size) if own else target.embedding.format)


def _match(checkpoint: Checkpoint, spec: EagleSpec, target: Decoder, own: bool) -> WeightMap:
    """Where each tensor goes. Raises ``CheckpointError`` with all that are missing, unexpected or of another shape or dtype."""
    layer_context = LayerContext(target.ops, DenseFormatFactory(target.ops, target.dtype, "meta"), target.dtype, "meta")
    head = EagleHead(spec, _embedding(spec, target, layer_context, own), layer_context)
    sources = eagle_weights(spec, own_embedding=own)
    faults = [fault for source in sources if (fault := unfit(source, checkpoint, head)) is not None]
    known = {*(source.name for source in sources), "d2t", "t2d"}
    faults += [
        f"{entry.name} {list(entry.shape)} is not expected" for name, entry in checkpoint.tensors.items() if name not in known
    ]
    if faults:
        raise CheckpointError(
            f"the tensors in {checkpoint.folder} are not those of the EAGLE-3 head that its config.json describes "
            f"({len(faults)} fault{'s' if len(faults) > 1 else ''}): {'; '.join(faults)}",
            remedy="Check that config.json belongs to these weights, and that the head was made for this model",
        )
    return sources


def _is_targets(checkpoint: Checkpoint, spec: EagleSpec, target: Decoder) -> bool:
    """Whether the head's embedding is a copy of the target's, which then serves both."""
    if spec.hidden_size != spec.target_size:
        return False
    stored = checkpoint.read(EMBEDDING)
    for start in range(0, spec.target_vocab_size, _CHUNK):
        part = stored[start : start + _CHUNK]
        rows = target.embed(torch.arange(start, start + len(part)))
        if not torch.equal(rows, part.to(rows.dtype)):
            return False
    return True
