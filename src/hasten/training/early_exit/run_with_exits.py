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

import torch
from torch import Tensor

from hasten.early_exit import CONFIDENCE_MEASURES
from hasten.early_exit.base import Reading
from hasten.layers.attention_context import DenseContext
from hasten.layers.exits import Exits
from hasten.training.target_model import TargetModel

# (layers computed, which tokens [R], their states) -> which of them leave, bool [R]
Decide = Callable[[int, Tensor, Reading], Tensor]


@dataclass(frozen=True, slots=True)
class Approach:
    """Texts up to the first exit: so far no token can have left. Many departures begin here."""

    context: DenseContext
    hidden_TE: Tensor
    before_TE: Tensor | None  # one layer earlier; None: the first exit is after the first layer, and nobody looks back beyond that


@dataclass(frozen=True, slots=True)
class ExitResult:
    hidden_TE: Tensor  # in the place of the state after the last layer: of a token that left, its exit's translation
    depth_T: Tensor  # int64, how many layers computed each token


@torch.no_grad()
def approach(target: TargetModel, exits: Exits, ids_BW: Tensor) -> Approach:
    """Every text is read from position 0."""
    decoder, first = target.decoder, exits.spec.layers[0]
    context = DenseContext(target.ops, decoder.rotary, [ids_BW.shape[1]] * len(ids_BW))
    before: list[Tensor] = []
    hidden_TE = decoder.run(decoder.embed(ids_BW.flatten()), context.positions_T, context, 0, first, {first - 2: before.append})
    return Approach(context, hidden_TE, before[0] if before else None)


@torch.no_grad()
def run_with_exits(target: TargetModel, exits: Exits, start: Approach, decide: Decide) -> ExitResult:
    """``decide`` is asked at every exit about the tokens that are still in the model, in order."""
    decoder, spec = target.decoder, exits.spec
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
            before_RE = None if before_TE is None else before_TE[rows_R]
            reading = Reading(hidden_TE[rows_R], before_RE, found, decoder.head)
            gone_R = rows_R[decide(layer, rows_R, reading)]
            read_TE[gone_R] = found.tuned_lens(hidden_TE[gone_R])
            inside_T[gone_R], depth_T[gone_R] = False, layer
        computed_TE = decoder.run(hidden_TE, start.context.positions_T, start.context, layer, layer + 1)
        before_TE, hidden_TE = hidden_TE, held(inside_T, computed_TE, hidden_TE)
    read_TE[inside_T] = hidden_TE[inside_T]
    return ExitResult(read_TE, depth_T)


def held(inside_T: Tensor, computed_TE: Tensor, hidden_TE: Tensor) -> Tensor:
    """States after a layer: of tokens that have left, the one that they left with."""
    return torch.where(inside_T[:, None], computed_TE, hidden_TE)


def confidence(rule: str, reading: Reading) -> Tensor:
    """By the measure of a rule; 0 where it would look back beyond the first layer. [R], float32"""
    measure = CONFIDENCE_MEASURES[rule]
    if measure.looks_back and reading.before_RE is None:
        return torch.zeros(len(reading.hidden_RE))
    return measure(reading)
