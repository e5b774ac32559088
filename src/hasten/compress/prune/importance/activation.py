"""``activation``: the norm of what a group adds to the outputs of matrices, on calibration text.

Minitron (Muralidharan et al., 2024, arXiv 2407.14679) scores by the activations of heads, neurons and norms alone. Here each is
multiplied with the weights that read it, as Wanda does for single weights (Sun et al., 2023, arXiv 2306.11695): a large activation
that is read with small weights matters little.

Shape suffixes: as in ``base``; T tokens · D head dim · X what a matrix reads · I inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hasten.compress.prune.importance.base import ImportanceScores, shares
from hasten.compress.prune.importance.read_tensors import Kind, channel_readers, visit_reads
from hasten.compress.prune.layer_subset import LayerSubset, batches
from hasten.compress.prune.shape import Shape
from hasten.layers.attention import Attention
from hasten.training.target_model import dense_weight


class ActivationImportance:
    """The L2 norms, over all tokens, of the outputs that the removal of a group takes away.

    A channel is read by many matrices of different scales: its score is the sum of its shares of their squared outputs.
    """

    @torch.no_grad()
    def measure(self, subset: LayerSubset, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> ImportanceScores:
        shape, modules, readers = Shape.of(subset.model.spec), subset.modules, channel_readers(subset)
        num_layers = len(modules)
        groups_LK, heads_LH = _zeros(num_layers, shape.num_kv_heads), _zeros(num_layers, shape.num_heads)
        neurons_LF, channels_NE = _zeros(num_layers, shape.intermediate_size), _zeros(len(readers), shape.hidden_size)

        def add(kind: Kind, number: int, read_TX: Tensor) -> None:
            if kind == "heads":
                groups_K, heads_H = _attention_outputs(modules[number].attention, read_TX)
                groups_LK[number] += groups_K
                heads_LH[number] += heads_H
            else:
                sums = neurons_LF if kind == "neurons" else channels_NE
                sums[number] += read_TX.square().sum(0, dtype=torch.float64)

        with visit_reads(subset, add):
            for batch_BS in batches(ids_BS):
                subset.model.decoder.norm(subset.last_state(batch_BS))
                tick()
        for neurons_F, layer in zip(neurons_LF, modules, strict=True):
            neurons_F *= squared_columns(dense_weight(layer.mlp.down))
        for channels_E, reader in zip(channels_NE, readers, strict=True):
            channels_E *= squared_columns(dense_weight(reader))
        return ImportanceScores(groups_LK.sqrt(), heads_LH.sqrt(), neurons_LF.sqrt(), shares(channels_NE).sum(0))


def squared_columns(weight_OI: Tensor) -> Tensor:
    """Return the squared L2 norms of the columns, [I] float64."""
    return weight_OI.double().square().sum(0)


def _attention_outputs(attention: Attention, read_TX: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed squares of the projection of each group alone [K], and of each query head [H]."""
    spec, weight_EX = attention.spec, dense_weight(attention.out)
    heads: list[Tensor] = []
    groups: list[Tensor] = []
    for _group in range(spec.num_kv_heads):
        group_TE = torch.zeros((), dtype=torch.float32, device="cpu")
        for _head in range(spec.num_heads // spec.num_kv_heads):
            dims = slice(len(heads) * spec.head_dim, (len(heads) + 1) * spec.head_dim)
            head_TE = read_TX[:, dims] @ weight_EX[:, dims].T
            heads.append(head_TE.square().sum(dtype=torch.float64))
            group_TE = group_TE + head_TE
        groups.append(group_TE.square().sum(dtype=torch.float64))
    return torch.stack(groups), torch.stack(heads)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64, device="cpu")


METHOD = ActivationImportance()
