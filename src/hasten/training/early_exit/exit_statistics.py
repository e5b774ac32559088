"""``ExitStatistics``: loss, divergence and confidence of every exit at every token of some sequences.

Shape suffixes: N sequences · S tokens per sequence · T = S - 1 positions with a next token · D exits · R tokens · E hidden size ·
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.early_exit.confidence import CONFIDENCE_MEASURES, ExitInput
from hasten.layers.early_exit import ExitHeads
from hasten.training.target_model import TargetModel

MAX_LOGITS = 1 << 24  # in memory at a time, several times over: 64 MiB in float32


@dataclass(frozen=True, slots=True)
class ExitStatistics:
    """float32. NLL is the negative log-likelihood of the sequence's next token."""

    nll_NT: Tensor  # of the full model
    exit_nll_NDT: Tensor
    kl_NDT: Tensor  # KL(full model || exit)
    agrees_NDT: Tensor  # bool: the exit and the full model have the same most likely token
    confidence: dict[str, Tensor]  # measure -> [N, D, T], 0 to 1


def split_sequences(ids_NS: Tensor, vocab_size: int) -> tuple[Tensor, ...]:
    """Split sequences into parts whose logits fit into memory, int64."""
    return torch.split(ids_NS.long(), max(1, MAX_LOGITS // (ids_NS.shape[1] * vocab_size)))


@torch.no_grad()
def exit_statistics(target: TargetModel, exits: ExitHeads, ids_NS: Tensor) -> ExitStatistics:
    parts = [_part_statistics(target, exits, part_NS) for part_NS in split_sequences(ids_NS, exits.spec.vocab_size)]
    return ExitStatistics(
        torch.cat([part.nll_NT for part in parts]),
        torch.cat([part.exit_nll_NDT for part in parts]),
        torch.cat([part.kl_NDT for part in parts]),
        torch.cat([part.agrees_NDT for part in parts]),
        {name: torch.cat([part.confidence[name] for part in parts]) for name in CONFIDENCE_MEASURES},
    )


def confidence(rule: str, exit_input: ExitInput) -> Tensor:
    """Return a rule's confidence [R], float32; 0 where it needs a previous hidden state and there is none."""
    measure = CONFIDENCE_MEASURES[rule]
    if measure.needs_previous_hidden and exit_input.previous_hidden_RE is None:
        return torch.zeros(len(exit_input.hidden_RE))
    return measure.compute(exit_input)


def _part_statistics(target: TargetModel, exits: ExitHeads, ids_NS: Tensor) -> ExitStatistics:
    head, layers, shape = target.decoder.head, exits.spec.layers, (len(ids_NS), ids_NS.shape[1] - 1)
    next_T1 = ids_NS[:, 1:].reshape(-1, 1)
    read_layers = {index for layer in layers for index in (layer - 1, layer - 2) if index >= 0}
    states = target.hidden_states(ids_NS[:, :-1], read_layers)
    logp_TV = head(states.last_TE).log_softmax(-1)
    probs_TV, greedy_T = logp_TV.exp(), logp_TV.argmax(-1)
    nll, kl, agrees = [], [], []
    confidences: dict[str, list[Tensor]] = {name: [] for name in CONFIDENCE_MEASURES}
    for layer in layers:
        aux = states.aux_hidden_states
        exit_input = ExitInput(aux[layer - 1], aux.get(layer - 2), exits.at(layer), head)
        for name, values in confidences.items():
            values.append(confidence(name, exit_input).view(shape))
        exit_logp_TV = exit_input.logits_RV.log_softmax(-1)
        nll.append(-exit_logp_TV.gather(-1, next_T1).view(shape))
        kl.append((probs_TV * (logp_TV - exit_logp_TV)).sum(-1).clamp(min=0.0).view(shape))
        agrees.append((exit_logp_TV.argmax(-1) == greedy_T).view(shape))
    return ExitStatistics(
        -logp_TV.gather(-1, next_T1).view(shape),
        torch.stack(nll, dim=1),
        torch.stack(kl, dim=1),
        torch.stack(agrees, dim=1),
        {name: torch.stack(values, dim=1) for name, values in confidences.items()},
    )
