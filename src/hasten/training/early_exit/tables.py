"""Exit tables: exit layers by token id or by prompt bucket (HashEE, Sun et al., 2022).

Tables come from statistics of training text. A budget is the largest mean KL from the full model at which an exit is taken. The
largest budget is chosen whose perplexity on validation text stays within the tolerance. That is a measurement, not a guarantee for
other text.

Shape suffixes: N sequences · S tokens per sequence · T = S - 1 positions with a next token · V vocabulary · D exits · P planes ·
X groups: token ids or buckets · R rows, one per token or prompt · L = 1 cost row · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.early_exit.confidence import ExitInput
from hasten.layers.early_exit import ExitHeads, ExitHeadsSpec, PromptHashTable
from hasten.training.early_exit.exit_statistics import ExitStatistics, split_sequences
from hasten.training.early_exit.risks import ExitSimulator, first_true, prompt_length, request_costs
from hasten.training.early_exit.thresholds import allowed_loss
from hasten.training.target_model import TargetModel

NUM_PLANES = 6
MIN_BUCKET_PROMPTS = 8  # a bucket with fewer prompts has no early exit
SHRINKAGE = 8.0  # occurrences of the mean of all tokens that are added to those of each token
NUM_BUDGETS = 40

Cost = tuple[float, float]  # loss in nats per token, layers per token


@dataclass(frozen=True, slots=True)
class ExitTable:
    """A table and its cost on validation text."""

    layers_X: Tensor  # int32, exit layer per token id or bucket
    budget: float
    risk: float  # nats per token
    mean_layers: float


def calibrate_table(kl_XD: Tensor, spec: ExitHeadsSpec, cost: Callable[[Tensor], Cost], tolerance: float) -> ExitTable:
    """Return the table of the largest budget whose loss is allowed. ``cost`` measures exit layers."""

    def exit_layers(budget: float) -> Tensor:
        return shallowest_exits(kl_XD, budget, spec)

    budget, risk, mean_layers = largest_budget(budget_grid(kl_XD), lambda budget: cost(exit_layers(budget)), tolerance)
    return ExitTable(exit_layers(budget), budget, risk, mean_layers)


def token_kl(ids_NT: Tensor, kl_NDT: Tensor, vocab_size: int) -> Tensor:
    """Return the mean KL of every exit after each token id, [V, D] float64.

    It is shrunk towards the mean of all tokens, and infinite for ids that do not occur.
    """
    kl_RD = kl_NDT.transpose(1, 2).flatten(0, 1).double()
    sum_VD, count_V1 = _group_sums(ids_NT.flatten().long(), kl_RD, vocab_size)
    mean_VD = (sum_VD + SHRINKAGE * kl_RD.mean(0)) / (count_V1 + SHRINKAGE)
    return mean_VD.where(count_V1 > 0, torch.inf)


def bucket_kl(target: TargetModel, ids_NS: Tensor, statistics: ExitStatistics, seed: int) -> tuple[Tensor, Tensor]:
    """Return random planes [P, E] and the mean KL of every exit per bucket, [2 ** P, D] float64.

    The mean is over the outputs after a bucket's prompts, and infinite for buckets with too few prompts.
    """
    prompt = prompt_length(statistics)
    embedded = [embed_prompt(target, ids_S[:prompt]) for ids_S in ids_NS]
    planes_PE = _random_planes(torch.stack([rows.mean(0) for rows in embedded]), seed)
    table = PromptHashTable(planes_PE, torch.zeros(1 << NUM_PLANES, dtype=torch.int32))
    bucket_N = torch.tensor([table.bucket(rows) for rows in embedded])
    kl_ND = statistics.kl_NDT[:, :, prompt - 1 :].double().mean(2)
    sum_XD, count_X1 = _group_sums(bucket_N, kl_ND, 1 << NUM_PLANES)
    return planes_PE, (sum_XD / count_X1).where(count_X1 >= MIN_BUCKET_PROMPTS, torch.inf)


def shallowest_exits(kl_XD: Tensor, budget: float, spec: ExitHeadsSpec) -> Tensor:
    """Return the first exit layer with a KL below the budget, or the number of layers, [X] int32."""
    return torch.tensor([*spec.layers, spec.num_layers], dtype=torch.int32)[first_true(kl_XD < budget, dim=1)]


def budget_grid(kl_XD: Tensor) -> list[float]:
    """Return rising budgets, denser towards 0.

    No group exits at the first budget. Every group of finite KL exits at the last.
    """
    finite = kl_XD[kl_XD.isfinite()]
    if finite.numel() == 0:
        return [0.0]
    values = finite.quantile(torch.linspace(0, 1, NUM_BUDGETS, dtype=torch.float64).square()).tolist()
    return [0.0, *sorted({value * (1 + 1e-9) for value in values})]


def largest_budget(budgets: Sequence[float], cost: Callable[[float], Cost], tolerance: float) -> tuple[float, float, float]:
    """Return (budget, loss, layers) of the largest budget whose loss is allowed.

    The first budget always is. Bisection: the loss is assumed to rise with the budget.
    """
    allowed, low, high = allowed_loss(tolerance), 0, len(budgets)
    best = (budgets[0], *cost(budgets[0]))
    while high - low > 1:
        middle = (low + high) // 2
        risk, layers = cost(budgets[middle])
        if risk <= allowed:
            low, best = middle, (budgets[middle], risk, layers)
        else:
            high = middle
    return best


def token_table_cost(target: TargetModel, exits: ExitHeads, ids_NS: Tensor, token_layers_V: Tensor) -> Cost:
    """Return the cost when every token but the first exits after ``token_layers_V`` of its id."""
    losses, layers = [], []
    for part_NS in split_sequences(ids_NS, exits.spec.vocab_size):
        exit_layers_NT = token_layers_V[part_NS[:, :-1]].clone()
        exit_layers_NT[:, 0] = exits.spec.num_layers
        loss_NT, layers_NT, _ = ExitSimulator(target, exits, part_NS).costs(_exit_after(exit_layers_NT.flatten()))
        losses.append(loss_NT[:, 1:].flatten())
        layers.append(layers_NT[:, 1:].flatten())
    return float(torch.cat(losses).mean()), float(torch.cat(layers).mean())


def prompt_table_cost(
    target: TargetModel, exits: ExitHeads, ids_NS: Tensor, statistics: ExitStatistics, table: PromptHashTable
) -> Cost:
    """Return the cost when every output exits after the layers that the table has for its prompt."""
    spec, prompt = exits.spec, prompt_length(statistics)
    exit_layers = [table.exit_layer(embed_prompt(target, ids_S[:prompt])) for ids_S in ids_NS]
    costs = request_costs(statistics, spec, torch.tensor([[(*spec.layers, spec.num_layers).index(e) for e in exit_layers]]))
    return float(costs.risk_LN[0].mean()), float(costs.layers_LN[0].mean())


@torch.no_grad()
def embed_prompt(target: TargetModel, ids_S: Tensor) -> Tensor:
    return target.decoder.embed(ids_S.long())


def _exit_after(exit_layers_T: Tensor) -> Callable[[int, Tensor, ExitInput], Tensor]:
    return lambda layer, rows_R, exit_input: exit_layers_T[rows_R] == layer


def _group_sums(group_R: Tensor, values_RD: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the sum [X, D] and the number [X, 1] of each group's rows."""
    sums_XD = torch.zeros(num_groups, values_RD.shape[1], dtype=torch.float64).index_add_(0, group_R, values_RD)
    return sums_XD, torch.bincount(group_R, minlength=num_groups)[:, None]


def _random_planes(mean_NE: Tensor, seed: int) -> Tensor:
    """Return random normals [P, E], orthogonal to the mean of all prompts, which separates none of them."""
    normals_PE = torch.randn(NUM_PLANES, mean_NE.shape[1], generator=torch.Generator().manual_seed(seed))
    common_E = torch.nn.functional.normalize(mean_NE.float().mean(0), dim=0)
    return normals_PE - (normals_PE @ common_E)[:, None] * common_E
