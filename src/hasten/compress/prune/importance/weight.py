"""``weight``: the share of the squared weights that each head, neuron and channel holds.

It reads no text. Matrices have scales of their own, so each counts relative to its own L2 norm. The norms' weights are folded into
the matrices that read them.

Shape suffixes: as in ``base``; D head dim · I inputs · O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hasten.compress.prune.importance.base import ImportanceScores, shares
from hasten.compress.prune.importance.read_tensors import channel_norms, channel_readers
from hasten.compress.prune.layer_subset import LayerSubset
from hasten.layers.attention import Attention
from hasten.layers.formats.base import WeightFormat
from hasten.layers.formats.dense import Dense
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.models.decoder import Decoder
from hasten.training.target_model import dense_weight


class WeightImportance:
    """A group's weights are all those that leave with it, but biases."""

    @torch.no_grad()
    def measure(self, subset: LayerSubset, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> ImportanceScores:
        groups, heads, neurons = [], [], []
        for layer in subset.modules:
            groups_K, heads_H = _heads(layer.attention, layer.attention_norm)
            groups.append(groups_K)
            heads.append(heads_H)
            neurons.append(_neurons(layer.mlp, layer.mlp_norm))
            tick()
        channels = [shares(squares_E) for squares_E in _channels(subset)]
        return ImportanceScores(torch.stack(groups), torch.stack(heads), torch.stack(neurons), torch.stack(channels).sum(0))


def _heads(attention: Attention, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the shares of groups [K] and of query heads [H]."""
    spec = attention.spec
    squares_GI = (dense_weight(attention.qkv).double() * norm.weight).square()
    rows_G = squares_GI.sum(1).view(-1, spec.head_dim).sum(1)  # G = H + K + K
    q_H, k_K, v_K = torch.split(rows_G, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads])
    out_H = dense_weight(attention.out).double().square().sum(0).view(-1, spec.head_dim).sum(1)
    heads_H = shares(q_H) + shares(out_H)
    return heads_H.view(spec.num_kv_heads, -1).sum(1) + shares(k_K) + shares(v_K), heads_H


def _neurons(mlp: Mlp, norm: Norm) -> Tensor:
    """Return the shares of the rows of gate and up, and of the columns of down, [F]."""
    squares_OI = (dense_weight(mlp.up).double() * norm.weight).square()
    rows = squares_OI.sum(1).view(-1, mlp.spec.intermediate_size)  # [gate and up, F]
    down_F = dense_weight(mlp.down).double().square().sum(0)
    return sum((shares(row_F) for row_F in rows), shares(down_F))


def _channels(subset: LayerSubset) -> Iterator[Tensor]:
    """Yield the squared weights of each channel in every matrix that writes it or reads it, [E]."""
    decoder = subset.model.decoder
    yield from (table.square().sum(0) for table in _tables(decoder))
    for layer in subset.modules:
        yield from (dense_weight(linear).double().square().sum(1) for linear in (layer.attention.out, layer.mlp.down))
    for reader, norm in zip(channel_readers(subset), channel_norms(subset), strict=True):
        yield (dense_weight(reader).double() * norm.weight).square().sum(0)


def _tables(decoder: Decoder) -> Iterator[Tensor]:
    """Yield the tables of tokens and positions, [rows, E]."""
    formats: list[WeightFormat] = [decoder.embedding.format]
    if decoder.positions is not None:
        formats.append(decoder.positions.format)
    for weight_format in formats:
        assert isinstance(weight_format, Dense)
        yield weight_format.weight.double()


METHOD = WeightImportance()
