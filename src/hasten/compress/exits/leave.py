"""A frozen model over whole texts in one pass, with tokens that leave before its last layer: what the engine does step by step.

::

    layers   0 .. e-1     e .. last
    state    computed     stays h_e, of which these layers make the keys and values that later tokens see
    read     nothing      what the exit after e layers translates h_e to

It does not know why a token leaves. Shape suffixes: B texts · W tokens of a text · T = B·W tokens · R of them · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hasten.compress.training.backbone import Backbone
from hasten.decoding.exits.base import Reading
from hasten.layers.context import DenseContext
from hasten.layers.exits import Exits

# (layers computed, which tokens [R], their states) -> which of them leave, bool [R]
Decide = Callable[[int, Tensor, Reading], Tensor]


@dataclass(frozen=True, slots=True)
class Approach:
    """Texts up to the first exit: so far no token can have left. Many departures begin here."""

    context: DenseContext
    hidden_TE: Tensor
    before_TE: Tensor  # one layer earlier


@dataclass(frozen=True, slots=True)
class Departure:
    hidden_TE: Tensor  # in the place of the state after the last layer: of a token that left, its exit's translation
    depth_T: Tensor  # int64, how many layers computed each token


@torch.no_grad()
def approach(backbone: Backbone, exits: Exits, ids_BW: Tensor) -> Approach:
    """Every text is read from position 0."""
    decoder, first = backbone.decoder, exits.spec.layers[0]
    context = DenseContext(backbone.ops, decoder.rotary, [ids_BW.shape[1]] * len(ids_BW))
    embedded_TE, positions_T = decoder.embed(ids_BW.flatten()), context.positions_T
    # No layers at all: the embedding, with learned positions where a model has them.
    states = {0: decoder.run(embedded_TE, positions_T, context, 0, 0)}
    keep = {layer - 1: partial(states.__setitem__, layer) for layer in (first - 1, first) if layer > 0}
    decoder.run(embedded_TE, positions_T, context, 0, first, keep)
    return Approach(context, states[first], states[first - 1])


@torch.no_grad()
def leave(backbone: Backbone, exits: Exits, start: Approach, decide: Decide) -> Departure:
    """``decide`` is asked at every exit about the tokens that are still in the model, in order."""
    decoder, spec = backbone.decoder, exits.spec
    hidden_TE, before_TE = start.hidden_TE, start.before_TE
    inside_T = torch.ones(len(hidden_TE), dtype=torch.bool)
    depth_T = torch.full((len(hidden_TE),), spec.num_layers)
    read_TE = torch.empty_like(hidden_TE)
    for layer in range(spec.layers[0], spec.num_layers):
        rows_R = inside_T.nonzero()[:, 0]
        if len(rows_R) == 0:
            break
        if layer in spec.layers:
            found = exits.at(layer)
            reading = Reading(hidden_TE[rows_R], before_TE[rows_R], found, decoder.head)
            gone_R = rows_R[decide(layer, rows_R, reading)]
            read_TE[gone_R] = found.translated(hidden_TE[gone_R])
            inside_T[gone_R], depth_T[gone_R] = False, layer
        computed_TE = decoder.run(hidden_TE, start.context.positions_T, start.context, layer, layer + 1)
        before_TE, hidden_TE = hidden_TE, torch.where(inside_T[:, None], computed_TE, hidden_TE)
    read_TE[inside_T] = hidden_TE[inside_T]
    return Departure(read_TE, depth_T)
