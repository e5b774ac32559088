"""Layers that are known before anything is computed, counted from annotated text (HashEE, Sun et al., 2022).

A budget says how far an exit's distribution may be from the whole model's, KL in nats on average, to be taken. It is the largest at
which held-out text still keeps its perplexity within the tolerance: measured there, which is no guarantee for other text.

Shape suffixes: N texts · W tokens of a text · T tokens read · V vocabulary · D exits · P planes · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.early_exit.base import Reading
from hasten.layers.exits import Exits
from hasten.layers.prompt_hash_table import PromptHashTable
from hasten.training.early_exit.annotate import Annotations, portions
from hasten.training.early_exit.risks import Whole, depth_costs, prompt_length
from hasten.training.early_exit.run_with_exits import Decide, approach, run_with_exits
from hasten.training.early_exit.thresholds import allowed_loss
from hasten.training.target_model import TargetModel

PLANES = 6
THIN = 8  # texts of a bucket, below which nobody knows it
SHRINKAGE = 8.0  # a token's mean is that of all tokens, seen so many times, and its own
BUDGETS = 40


@dataclass(frozen=True, slots=True)
class Found:
    """A table and what it costs on held-out text."""

    table: Tensor | PromptHashTable
    budget: float
    risk: float  # nats per token
    mean_layers: float


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How far every exit is from the whole model after each token, over the text that was annotated."""

    kl_VD: Tensor  # float64, means drawn towards that of all tokens
    seen_V: Tensor  # bool

    @classmethod
    def of(cls, ids_NT: Tensor, kl_NDT: Tensor, vocab_size: int) -> TokenCounts:
        kl_RD = kl_NDT.transpose(1, 2).flatten(0, 1).double()
        ids_R = ids_NT.flatten().long()
        sum_VD = torch.zeros(vocab_size, kl_RD.shape[1], dtype=torch.float64).index_add_(0, ids_R, kl_RD)
        count_V = torch.bincount(ids_R, minlength=vocab_size)
        return cls((sum_VD + SHRINKAGE * kl_RD.mean(0)) / (count_V[:, None] + SHRINKAGE), count_V > 0)

    def table(self, budget: float, layers: Sequence[int], num_layers: int) -> Tensor:
        """The shallowest exit within the budget; tokens that were never seen go to the end. [V] int32"""
        return shallowest(self.kl_VD.where(self.seen_V[:, None], torch.inf), budget, layers, num_layers)


@dataclass(frozen=True, slots=True)
class TextCounts:
    """The same of buckets of texts."""

    planes_PE: Tensor
    kl_BD: Tensor  # float64, mean over the answers of a bucket's texts; infinite where the bucket is thin

    @classmethod
    def of(cls, target: TargetModel, texts_NW: Tensor, found: Annotations, seed: int) -> TextCounts:
        prompt = prompt_length(found)
        embedded = [embedded_prompt(target, text_W[:prompt]) for text_W in texts_NW]
        planes_PE = _planes(torch.stack([rows.mean(0) for rows in embedded]), seed)
        blank = PromptHashTable(planes_PE, torch.zeros(1 << PLANES, dtype=torch.int32))
        bucket_N = torch.tensor([blank.bucket(rows) for rows in embedded])
        kl_ND = found.kl_NDT[:, :, prompt - 1 :].double().mean(2)
        sum_BD = torch.zeros(1 << PLANES, kl_ND.shape[1], dtype=torch.float64).index_add_(0, bucket_N, kl_ND)
        count_B1 = torch.bincount(bucket_N, minlength=1 << PLANES)[:, None]
        return cls(planes_PE, (sum_BD / count_B1).where(count_B1 >= THIN, torch.inf))

    def table(self, budget: float, layers: Sequence[int], num_layers: int) -> PromptHashTable:
        return PromptHashTable(self.planes_PE, shallowest(self.kl_BD, budget, layers, num_layers))


def shallowest(kl_XD: Tensor, budget: float, layers: Sequence[int], num_layers: int) -> Tensor:
    """The first exit below the budget, or all layers. [X] int32"""
    within_XD = torch.cat((kl_XD < budget, torch.ones(len(kl_XD), 1, dtype=torch.bool)), dim=1)
    return torch.tensor([*layers, num_layers], dtype=torch.int32)[within_XD.long().argmax(1)]


def budgets(kl_XD: Tensor) -> list[float]:
    """Rising, from nothing leaves to everything that is known does; the smaller, the nearer to each other."""
    known = kl_XD[kl_XD.isfinite()]
    if known.numel() == 0:
        return [0.0]
    values = known.quantile(torch.linspace(0, 1, BUDGETS, dtype=torch.float64).square()).tolist()
    return [0.0, *sorted({value * (1 + 1e-9) for value in values})]


def largest(steps: Sequence[float], cost: Callable[[float], tuple[float, float]], tolerance: float) -> tuple[float, float, float]:
    """(budget, risk, layers) of the largest budget whose risk is allowed, by bisection: risk is taken to rise with the budget.

    The first budget costs nothing.
    """
    allowed, low, high = allowed_loss(tolerance), 0, len(steps)
    best = (steps[0], *cost(steps[0]))
    while high - low > 1:
        middle = (low + high) // 2
        risk, layers = cost(steps[middle])
        if risk <= allowed:
            low, best = middle, (steps[middle], risk, layers)
        else:
            high = middle
    return best


def token_costs(target: TargetModel, exits: Exits, texts_NW: Tensor, token_layers: Tensor) -> tuple[float, float]:
    """(nats lost per token, layers per token) of texts whose tokens, but for the first, leave where the table says."""
    lost, layers = [], []
    for part_NW in portions(texts_NW, exits.spec.vocab_size):
        depth_NT = token_layers[part_NW[:, :-1]].clone()
        depth_NT[:, 0] = exits.spec.num_layers
        result = run_with_exits(target, exits, approach(target, exits, part_NW[:, :-1]), known(depth_NT.flatten()))
        loss_NT, _ = Whole.read(target, part_NW).compared(target, result.hidden_TE)
        lost.append(loss_NT[:, 1:].flatten())
        layers.append(result.depth_T.view(loss_NT.shape)[:, 1:].flatten())
    return float(torch.cat(lost).mean()), float(torch.cat(layers).double().mean())


def text_costs(
    target: TargetModel, exits: Exits, texts_NW: Tensor, found: Annotations, table: PromptHashTable
) -> tuple[float, float]:
    """The same of texts whose answers leave where the table says of their prompts."""
    places = {layer: place for place, layer in enumerate((*exits.spec.layers, exits.spec.num_layers))}
    prompt = prompt_length(found)
    depths = [table.layer(embedded_prompt(target, text_W[:prompt])) for text_W in texts_NW]
    place_N = torch.tensor([places[depth] for depth in depths])
    lost_N, layers_N, _ = depth_costs(found, exits.spec.layers, exits.spec.num_layers, place_N)
    return float(lost_N.mean()), float(layers_N.mean())


def embedded_prompt(target: TargetModel, ids_W: Tensor) -> Tensor:
    with torch.no_grad():
        return target.decoder.embed(ids_W.long())


def known(depth_T: Tensor) -> Decide:
    """Tokens leave where they were told to."""

    def decide(layer: int, rows_R: Tensor, reading: Reading) -> Tensor:
        return depth_T[rows_R] == layer

    return decide


def _planes(mean_NE: Tensor, seed: int) -> Tensor:
    """Random, but for the direction that all texts have in common, which would put them all on one side."""
    normals_PE = torch.randn(PLANES, mean_NE.shape[1], generator=torch.Generator().manual_seed(seed))
    common_E = torch.nn.functional.normalize(mean_NE.float().mean(0), dim=0)
    return normals_PE - (normals_PE @ common_E)[:, None] * common_E
