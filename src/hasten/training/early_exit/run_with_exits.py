"""``run_with_exits``: complete sequences with early exits in one pass of a frozen model.

The results are those of the engine, which runs token by token.

::

    layers   0 .. e-1     e .. last
    state    computed     stays h_e; these layers make keys and values from it, which later tokens attend to
    output   -            tuned lens of h_e, at the exit after e layers

``ShouldExit`` decides where tokens exit. Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · R some of them ·
E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.early_exit.confidence import ExitInput
from hasten.layers.attention import DenseContext
from hasten.layers.early_exit import ExitHeads
from hasten.training.target_model import TargetModel

# (exit layer, indices of tokens [R], their hidden states) -> which of them exit, bool [R]
ShouldExit = Callable[[int, Tensor, ExitInput], Tensor]


@dataclass(frozen=True, slots=True)
class FirstExitStates:
    """Hidden states at the first exit. Several runs with exits can start from them."""

    context: DenseContext
    hidden_TE: Tensor
    previous_hidden_TE: Tensor | None  # one layer earlier; None if the first exit follows the first layer


@dataclass(frozen=True, slots=True)
class ExitResult:
    hidden_TE: Tensor  # in place of the last layer's output; an exited token has the tuned lens of its exit
    exit_layers_T: Tensor  # int64, how many layers computed each token


@torch.no_grad()
def run_to_first_exit(target: TargetModel, exits: ExitHeads, ids_BS: Tensor) -> FirstExitStates:
    """Run every sequence from position 0 up to the first exit."""
    decoder, first = target.decoder, exits.spec.layers[0]
    context = DenseContext(target.ops, decoder.rotary, [ids_BS.shape[1]] * len(ids_BS))
    previous: list[Tensor] = []
    embedded_TE = decoder.embed(ids_BS.flatten())
    hidden_TE = decoder.run(embedded_TE, context.positions_T, context, 0, first, {first - 2: previous.append})
    return FirstExitStates(context, hidden_TE, previous[0] if previous else None)


@torch.no_grad()
def run_with_exits(target: TargetModel, exits: ExitHeads, start: FirstExitStates, should_exit: ShouldExit) -> ExitResult:
    """Run the remaining layers. ``should_exit`` decides at every exit for the tokens still active."""
    decoder, spec = target.decoder, exits.spec
    hidden_TE, previous_TE = start.hidden_TE, start.previous_hidden_TE
    active_T = torch.ones(len(hidden_TE), dtype=torch.bool)
    exit_layers_T = torch.full((len(hidden_TE),), spec.num_layers)
    output_TE = torch.empty_like(hidden_TE)
    for layer in range(spec.layers[0], spec.num_layers):
        active_R = active_T.nonzero()[:, 0]
        if len(active_R) == 0:
            break
        if layer in spec.layers:
            head = exits.at(layer)
            previous_RE = None if previous_TE is None else previous_TE[active_R]
            exited_R = active_R[should_exit(layer, active_R, ExitInput(hidden_TE[active_R], previous_RE, head, decoder.head))]
            output_TE[exited_R] = head.tuned_lens(hidden_TE[exited_R])
            active_T[exited_R], exit_layers_T[exited_R] = False, layer
        computed_TE = decoder.run(hidden_TE, start.context.positions_T, start.context, layer, layer + 1)
        previous_TE, hidden_TE = hidden_TE, freeze_exited(active_T, computed_TE, hidden_TE)
    output_TE[active_T] = hidden_TE[active_T]
    return ExitResult(output_TE, exit_layers_T)


def freeze_exited(active_T: Tensor, computed_TE: Tensor, hidden_TE: Tensor) -> Tensor:
    """Return the layer's output for active tokens, and the unchanged hidden state for exited ones."""
    return torch.where(active_T[:, None], computed_TE, hidden_TE)
