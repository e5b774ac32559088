"""Draft heads of a model, loaded: Medusa heads or an EAGLE-3 head, told apart by their own configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hasten.checkpoints.formats.medusa import MedusaCheckpoint, read_medusa
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.layers.eagle import LAYER
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.layers.medusa import MedusaHeads as MedusaModules
from hasten.models.eagle import LoadedEagle, load_eagle
from hasten.models.load import LoadedModel
from hasten.runners.backends.base import Backend
from hasten.speculative.drafters.base import ModelDrafter
from hasten.speculative.drafters.eagle import Eagle
from hasten.speculative.drafters.medusa import Medusa
from hasten.speculative.step_costs import StepCosts

MOST_READ = 1024  # states that a head reads in one go


class DraftHeads(Protocol):
    """What the engine asks of heads, whatever they are."""

    name: ClassVar[str]

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        """The model's layers whose hidden states they read."""
        ...

    def block_bytes(self, block_size: int) -> int:
        """Of a block of the keys and values that they keep."""
        ...

    def drafter(self, costs: StepCosts, num_blocks: int, block_size: int, limit: Mapping[str, int]) -> ModelDrafter:
        """``costs`` of the steps that verify."""
        ...


def load_draft_heads(folder: Path, backend: Backend, target: LoadedModel) -> DraftHeads:
    """Quantised as drafters are. Raises ``CheckpointError`` for heads of another model, with both numbers."""
    formats = backend.draft_formats(target.dtype)
    if _is_eagle(folder):
        return EagleDraftHeads(load_eagle(folder, target.decoder, formats=formats), target, backend)
    spec = target.spec
    layer_context = LayerContext(backend.ops, formats, target.dtype)
    checkpoint = read_medusa(folder, hidden_size=spec.hidden_size, vocab_size=spec.vocab_size, layer_context=layer_context)
    words, token_map = target.decoder.lm_head, checkpoint.heads.token_map
    if checkpoint.heads.spec.lm_head == "model" and token_map is not None:
        words = words.slice_rows(token_map, layer_context)
    return MedusaHeads(checkpoint, target, words)


def _is_eagle(folder: Path) -> bool:
    """What cannot be read is no EAGLE head, and whoever reads Medusa heads says what is wrong."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and ("speculators_model_type" in config or "draft_vocab_size" in config)


@dataclass(frozen=True, slots=True)
class MedusaHeads:
    checkpoint: MedusaCheckpoint
    target: LoadedModel
    words: Linear  # the model's vocabulary, or the part of it that the heads guess from
    name: ClassVar[str] = "medusa"

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return (self.target.spec.num_layers - 1,)

    def block_bytes(self, block_size: int) -> int:
        return 0

    def drafter(self, costs: StepCosts, num_blocks: int, block_size: int, limit: Mapping[str, int]) -> Medusa:
        heads, accuracies = self.checkpoint.heads, self.checkpoint.accuracies
        (layer,) = self.aux_layer_indices
        logits = partial(_medusa_logits, heads, self.words, self.target)
        num_heads, token_ids = heads.spec.num_heads, heads.token_ids
        return Medusa(logits, token_ids, costs=costs, layer=layer, num_heads=num_heads, accuracies=accuracies, **limit)


@dataclass(frozen=True, slots=True)
class EagleDraftHeads:
    loaded: LoadedEagle
    target: LoadedModel
    backend: Backend
    name: ClassVar[str] = "eagle"

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return self.loaded.head.spec.aux_layer_indices

    def block_bytes(self, block_size: int) -> int:
        return self.backend.block_bytes((self._group,), block_size, self.target.dtype)

    def drafter(self, costs: StepCosts, num_blocks: int, block_size: int, limit: Mapping[str, int]) -> Eagle:
        groups = (self._group,)
        space = KvCacheManager(groups, num_blocks, block_size, keep_cached=False)
        runner = self.backend.eagle(self.loaded.head, groups, num_blocks, block_size, self.target.dtype, MOST_READ)
        return Eagle(
            runner,
            space,
            costs=costs,
            aux_layer_indices=self.aux_layer_indices,
            max_positions=self.target.spec.max_positions,
            **limit,
        )

    @property
    def _group(self) -> KvGroup:
        attention = self.loaded.head.spec.layer.attention
        return KvGroup((LAYER,), attention.num_kv_heads, attention.head_dim)


def _medusa_logits(heads: MedusaModules, words: Linear, target: LoadedModel, state_RE: Tensor) -> Tensor:
    with torch.inference_mode():
        normed_RE: Tensor = target.decoder.norm(state_RE.to(target.dtype))
        logits_HRV: Tensor = heads(normed_RE, words)
    return logits_HRV
