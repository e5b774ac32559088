"""What leaving early costs on a given text, one token after the other, with the modules of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tests.early_exit.reference_exits import Rule, SlowAnswer, SlowExits, TrainedExit
from transformers import AutoModelForCausalLM

from hasten.layers.exits import Exits, ExitsSpec
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.training.target_model import TargetModel


def random_exits(target: TargetModel, layers: tuple[int, ...], seed: int = 7) -> Exits:
    spec = target.spec
    sizes = ExitsSpec(layers=layers, num_layers=spec.num_layers, hidden_size=spec.hidden_size, vocab_size=spec.vocab_size)
    exits = Exits(sizes, LayerContext(target.ops, DenseFormatFactory(target.ops, torch.float32), torch.float32))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in exits.named_parameters():
        parameter.normal_(0.0, 0.05 if parameter.ndim > 1 else 0.3, generator=draw)
        if name.endswith("classify_bias"):
            parameter.fill_(0.1)
    return exits


@dataclass(frozen=True, slots=True)
class SlowText:
    depths: list[int]
    losses: list[float]  # nats that the exits lose on every token that came
    closest: float  # how near a decision was to the other one


def slow_text(folder: Path, exits: Exits, tokens: list[int], rule: Rule) -> SlowText:
    """The first token is the prompt, the others an answer that says what the text says."""
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
    found, depths, losses = SlowAnswer(), [], []
    nll: list[list[float]] = []
    for current in (rule, Rule("none")):
        slow = SlowExits(model, trained)
        slow.keys = [[] for _ in range(slow.num_layers)]
        slow.values = [[] for _ in range(slow.num_layers)]
        nll.append([])
        with torch.inference_mode():
            for place, (token, after) in enumerate(pairwise(tokens)):
                depth, logits_V = slow._token(token, place, place, len(tokens) - 1, current, found)
                nll[-1].append(-float(logits_V.log_softmax(-1)[after]))
                if current is rule:
                    depths.append(depth)
    losses = [ours - theirs for ours, theirs in zip(*nll, strict=True)]
    return SlowText(depths, losses, found.closest)
