"""What every exit says about every token of some texts: one pass of the whole model, to count and to choose from.

Shape suffixes: N texts · T tokens of a text that are read · D exits · V vocabulary · E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.early_exit import REQUEST_CRITERIA, TOKEN_CRITERIA
from hasten.early_exit.base import Reading
from hasten.layers.exits import Exits
from hasten.training.early_exit.run_with_exits import confidence
from hasten.training.target_model import TargetModel

LOGITS = 1 << 24  # in memory at a time, several times over: 64 MiB in float32


@dataclass(frozen=True, slots=True)
class Annotations:
    """float32. The token after the last one read is known too, so every position has a target."""

    nll_NT: Tensor  # of the token that came, by the whole model
    exit_nll_NDT: Tensor  # by each exit
    kl_NDT: Tensor  # KL(whole model || exit)
    agrees_NDT: Tensor  # bool: their likeliest tokens are the same
    sure: dict[str, Tensor]  # measure -> [N, D, T], 0 to 1


def portions(texts_NW: Tensor, vocab_size: int) -> tuple[Tensor, ...]:
    """As many texts at a time as their logits allow. [n, W], int64"""
    return torch.split(texts_NW.long(), max(1, LOGITS // (texts_NW.shape[1] * vocab_size)))


@torch.no_grad()
def annotate(target: TargetModel, exits: Exits, texts_NW: Tensor) -> Annotations:
    """``texts_NW``: [N, T + 1] token ids."""
    parts = [_annotate(target, exits, part_NW) for part_NW in portions(texts_NW, exits.spec.vocab_size)]
    return Annotations(
        torch.cat([part.nll_NT for part in parts]),
        torch.cat([part.exit_nll_NDT for part in parts]),
        torch.cat([part.kl_NDT for part in parts]),
        torch.cat([part.agrees_NDT for part in parts]),
        {name: torch.cat([part.sure[name] for part in parts]) for name in parts[0].sure},
    )


def _annotate(target: TargetModel, exits: Exits, texts_NW: Tensor) -> Annotations:
    decoder, layers, shape = target.decoder, exits.spec.layers, (len(texts_NW), texts_NW.shape[1] - 1)
    wanted_T1 = texts_NW[:, 1:].reshape(-1, 1)
    states = target.states(texts_NW[:, :-1], {after for layer in layers for after in (layer - 1, layer - 2) if after >= 0})
    whole_TV = decoder.head(states.last_TE).log_softmax(-1)
    share_TV, best_T = whole_TV.exp(), whole_TV.argmax(-1)
    nll, kl, agrees = [], [], []
    sure: dict[str, list[Tensor]] = {name: [] for name in (*TOKEN_CRITERIA, *REQUEST_CRITERIA)}
    for layer in layers:
        hidden_TE = states.aux_hidden_states[layer - 1]
        reading = Reading(hidden_TE, states.aux_hidden_states.get(layer - 2), exits.at(layer), decoder.head)
        for name, values in sure.items():
            values.append(confidence(name, reading).view(shape))
        said_TV = reading.logits_RV.log_softmax(-1)
        nll.append(-said_TV.gather(-1, wanted_T1).view(shape))
        kl.append((share_TV * (whole_TV - said_TV)).sum(-1).clamp(min=0.0).view(shape))
        agrees.append((said_TV.argmax(-1) == best_T).view(shape))
    return Annotations(
        -whole_TV.gather(-1, wanted_T1).view(shape),
        torch.stack(nll, dim=1),
        torch.stack(kl, dim=1),
        torch.stack(agrees, dim=1),
        {name: torch.stack(values, dim=1) for name, values in sure.items()},
    )
