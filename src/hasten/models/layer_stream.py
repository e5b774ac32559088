"""``LayerStream``: a checkpoint's decoder, one layer in memory at a time.

For work that passes a text through all layers, such as calibration: the weights stay in the memory-mapped files.

Shape suffixes: B sequences · S tokens per sequence · T tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.layers.attention import DenseContext
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.models.load import DecoderPlan, plan_decoder
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap, load_weights
from hasten.ops.torch.backend import TorchOps

SEQUENCES = 4  # that run at a time: 2,048 tokens of 512 each
VOCABULARY_CHUNK = 16_384  # tokens whose rows of lm_head are in float32 at a time


@dataclass(frozen=True, slots=True)
class LayerStream:
    """All matrices are float32 while they are in memory."""

    plan: DecoderPlan
    ops: TorchOps
    _rotary: RotaryTables = field(repr=False)

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> LayerStream:
        """Check the checkpoint as ``plan_decoder`` does, and read nothing. Raises ``CheckpointError``."""
        ops = TorchOps()
        plan = plan_decoder(checkpoint, dtype="auto", ops=ops)
        return cls(plan, ops, RotaryTables(plan.spec.rotary_specs, "cpu"))

    @property
    def spec(self) -> DecoderSpec:
        return self.plan.spec

    @property
    def folder(self) -> Path:
        return self.plan.checkpoint.folder

    def layer_sources(self, index: int) -> WeightMap:
        """Return the sources of a layer; targets are names in the ``DecoderLayer``."""
        return self._sources(f"layers.{index}.")

    def other_sources(self) -> WeightMap:
        """Return the sources outside the layers: embedding, positions, final norm and lm_head."""
        return tuple(source for source in self.plan.sources if not source.target.startswith("layers."))

    def layer(self, index: int, checkpoint: Checkpoint | None = None) -> DecoderLayer:
        """Read a layer, by default of the stream's own checkpoint.

        Raises ``CheckpointError`` for weights that cannot be read.
        """
        spec = self.spec
        layer = DecoderLayer(spec.layers[index], spec.norm, spec.hidden_size, self._layer_context())
        load_weights(layer, checkpoint or self.plan.checkpoint, self.layer_sources(index), None)
        return layer.eval()

    @torch.no_grad()
    def embed(self, ids_BS: Tensor) -> Tensor:
        """Return the input of the first layer, [B, S, E]."""
        embedded_BSE = self._tensor("embedding.format.weight")[ids_BS].float()
        if self.spec.learned_positions:
            embedded_BSE += self._tensor("positions.format.weight")[: ids_BS.shape[1]].float()
        return embedded_BSE

    @torch.no_grad()
    def run(self, layer: DecoderLayer, index: int, hidden_BSE: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Run the layer in the dtype of its weights on some sequences at a time.

        Yields which, and their outputs [b, S, E].
        """
        dtype = layer.attention_norm.weight.dtype
        for start in range(0, len(hidden_BSE), SEQUENCES):
            rows = slice(start, min(start + SEQUENCES, len(hidden_BSE)))
            part_BSE = hidden_BSE[rows].to(dtype)
            context = DenseContext(self.ops, self._rotary, [part_BSE.shape[1]] * len(part_BSE))
            yield rows, layer(part_BSE.flatten(0, 1), index, context).reshape(part_BSE.shape)

    @torch.no_grad()
    def logits(self, hidden_TE: Tensor) -> Tensor:
        """Return the logits after the last layer's outputs, [T, V] float32."""
        norm = Norm(self.spec.norm, self.spec.hidden_size, self._layer_context())
        load_weights(norm, self.plan.checkpoint, self._sources("norm."), None)
        normed_TE = norm(hidden_TE.float())
        tied = self.spec.tie_word_embeddings
        weight_VE = self._tensor("embedding.format.weight" if tied else "lm_head.format.weight")
        return torch.cat([normed_TE @ rows_VE.float().T for rows_VE in torch.split(weight_VE, VOCABULARY_CHUNK)], dim=1)

    def _sources(self, prefix: str) -> WeightMap:
        """Return the sources of a module, with their targets in it."""
        return tuple(
            dataclasses.replace(source, target=source.target.removeprefix(prefix))
            for source in self.plan.sources
            if source.target.startswith(prefix)
        )

    def _tensor(self, target: str) -> Tensor:
        """Return the tensor of a target that one source fills, as a view of the file."""
        (source,) = (source for source in self.plan.sources if source.target == target)
        return self.plan.checkpoint.read(source.name)

    def _layer_context(self) -> LayerContext:
        return LayerContext(self.ops, DenseFormatFactory(self.ops, torch.float32), torch.float32)
