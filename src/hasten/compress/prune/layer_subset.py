"""``LayerSubset``: a model of which only some layers run, without a copy of its weights.

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.layers.attention import DenseContext
from hasten.layers.decoder_layer import DecoderLayer
from hasten.training.trainable_model import TrainableModel

TOKENS = 2048  # that run at a time


@dataclass(frozen=True, slots=True)
class LayerSubset:
    model: TrainableModel
    layers: tuple[int, ...]  # those that run, ascending

    @classmethod
    def all_of(cls, model: TrainableModel) -> LayerSubset:
        return cls(model, tuple(range(model.spec.num_layers)))

    @property
    def modules(self) -> list[DecoderLayer]:
        """The layers that run."""
        found = [self.model.decoder.layers[index] for index in self.layers]
        return [layer for layer in found if isinstance(layer, DecoderLayer)]

    def without(self, layer: int) -> LayerSubset:
        return LayerSubset(self.model, tuple(index for index in self.layers if index != layer))

    def context(self, ids_BS: Tensor) -> DenseContext:
        return DenseContext(self.model.ops, self.model.decoder.rotary, [ids_BS.shape[1]] * len(ids_BS), ids_BS.device)

    def embed(self, ids_BS: Tensor, context: DenseContext) -> Tensor:
        """Return the input of the first layer, [T, E]."""
        decoder = self.model.decoder
        return decoder.run(decoder.embed(ids_BS.flatten()), context.positions_T, context, 0, 0)  # no layer: adds positions

    def states(self, ids_BS: Tensor, context: DenseContext) -> Iterator[Tensor]:
        """Yield the input of the first layer, and then the output of each, [T, E]."""
        hidden_TE = self.embed(ids_BS, context)
        yield hidden_TE
        for index in self.layers:
            hidden_TE = self.model.decoder.layers[index](hidden_TE, index, context)
            yield hidden_TE

    def last_state(self, ids_BS: Tensor) -> Tensor:
        """Return the output of the last layer, before the final norm, [T, E]."""
        *_, last_TE = self.states(ids_BS, self.context(ids_BS))
        return last_TE


def batches(ids_BS: Tensor, tokens: int = TOKENS) -> tuple[Tensor, ...]:
    """Return the sequences in batches of about ``tokens``, and at least one sequence."""
    return torch.split(ids_BS, max(1, tokens // ids_BS.shape[1]))


def next_token_loss(model: TrainableModel, last_TE: Tensor, ids_BS: Tensor) -> Tensor:
    """Return the summed cross entropy of the tokens but the first of each sequence, in nats.

    ``last_TE`` are the outputs of the last layer, before the final norm.
    """
    normed_BSE = model.decoder.norm(last_TE).view(*ids_BS.shape, -1)
    total = last_TE.new_zeros(())
    for normed_SE, ids_S in zip(normed_BSE, ids_BS, strict=True):
        total = total + F.cross_entropy(model.decoder.lm_head(normed_SE[:-1]), ids_S[1:], reduction="sum")
    return total


def no_tick() -> None:
    """Count nothing: the ``tick`` of a caller without progress."""
