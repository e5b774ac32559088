"""Cost of early exits on given tokens, computed token by token with the modules of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tests.early_exit.reference_exits import ReferenceExits, ReferenceOutput, Rule, TrainedExit
from transformers import AutoModelForCausalLM

from hasten.layers.early_exit import ExitHeads, ExitHeadsSpec
from hasten.training.target_model import TargetModel


def random_exits(target: TargetModel, layers: tuple[int, ...], seed: int = 7) -> ExitHeads:
    spec = target.spec
    sizes = ExitHeadsSpec(layers=layers, num_layers=spec.num_layers, hidden_size=spec.hidden_size, vocab_size=spec.vocab_size)
    exits = ExitHeads(sizes, target.layer_context)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in exits.named_parameters():
        parameter.normal_(0.0, 0.05 if parameter.ndim > 1 else 0.3, generator=generator)
        if name.endswith("classify_bias"):
            parameter.fill_(0.1)
    return exits


@dataclass(frozen=True, slots=True)
class ReferenceCosts:
    exit_layers: list[int]
    losses: list[float]  # nats that exits lose on every next token
    smallest_margin: float  # of all exit decisions, to the threshold


def reference_costs(folder: Path, exits: ExitHeads, tokens: list[int], rule: Rule) -> ReferenceCosts:
    """Return the costs of a sequence whose first token is the prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    trained = {
        layer: TrainedExit(
            exits.at(layer).translate.format.weight,
            exits.at(layer).translate.bias,
            exits.at(layer).classify_weight,
            float(exits.at(layer).classify_bias),
        )
        for layer in exits.spec.layers
    }
    output, exit_layers = ReferenceOutput(), []
    nll: list[list[float]] = []
    for current in (rule, Rule("none")):
        reference = ReferenceExits(model, trained)
        nll.append([])
        with torch.inference_mode():
            for position, (token, next_token) in enumerate(pairwise(tokens)):
                layer, logits_V = reference.compute_token(token, position, position, len(tokens) - 1, current, output)
                nll[-1].append(-float(logits_V.log_softmax(-1)[next_token]))
                if current is rule:
                    exit_layers.append(layer)
    losses = [with_exits - full for with_exits, full in zip(*nll, strict=True)]
    return ReferenceCosts(exit_layers, losses, output.smallest_margin)
