"""Cost of early exits on given sequences: loss of the next token in nats, layers computed, and KL.

For rules that test every token, the first token of a sequence is the prompt. For rules that test the prompt once, the first half of
the sequence is. The output is the rest of the sequence, not text generated with exits.

Shape suffixes: N sequences · S tokens per sequence · T = S - 1 positions with a next token · D exits · L thresholds ·
R some tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.core.early_exit import DECAY, REQUEST_CRITERIA, decayed_threshold
from hasten.early_exit.confidence import ExitInput
from hasten.layers.early_exit import ExitHeads, ExitHeadsSpec
from hasten.training.early_exit.exit_statistics import ExitStatistics, confidence, split_sequences
from hasten.training.early_exit.run_with_exits import ShouldExit, run_to_first_exit, run_with_exits
from hasten.training.early_exit.thresholds import NO_EXIT, Costs
from hasten.training.target_model import TargetModel

GRID_STEPS = 20


class ExitSimulator:
    """Measures the cost of exits on some sequences.

    The full model and the layers before the first exit run once, for any number of decisions.
    """

    @torch.no_grad()
    def __init__(self, target: TargetModel, exits: ExitHeads, ids_NS: Tensor) -> None:
        self._target, self._exits = target, exits
        self._next_NT = ids_NS[:, 1:]
        self._start = run_to_first_exit(target, exits, ids_NS[:, :-1])
        self._logp_TV = target.decoder.head(target.hidden_states(ids_NS[:, :-1]).last_TE).log_softmax(-1)
        self._probs_TV = self._logp_TV.exp()

    @torch.no_grad()
    def costs(self, should_exit: ShouldExit) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, layers and KL of every token, [N, T] float64 each."""
        result = run_with_exits(self._target, self._exits, self._start, should_exit)
        exit_logp_TV = self._target.decoder.head(result.hidden_TE).log_softmax(-1)
        next_T1 = self._next_NT.reshape(-1, 1)
        loss_T = (self._logp_TV.gather(-1, next_T1) - exit_logp_TV.gather(-1, next_T1))[:, 0]
        kl_T = torch.linalg.vecdot(self._probs_TV, self._logp_TV - exit_logp_TV).clamp(min=0.0)
        loss_NT, layers_NT, kl_NT = (x_T.view(self._next_NT.shape).double() for x_T in (loss_T, result.exit_layers_T, kl_T))
        return loss_NT, layers_NT, kl_NT


def token_risks(
    target: TargetModel, exits: ExitHeads, ids_NS: Tensor, rule: str, thresholds: Sequence[float], decay: float | None = DECAY
) -> Costs:
    """Return the costs of a rule that tests every token but the first."""
    parts = []
    for part_NS in split_sequences(ids_NS, exits.spec.vocab_size):
        simulator, rows = ExitSimulator(target, exits, part_NS), []
        for threshold in thresholds:
            if threshold >= NO_EXIT:
                rows.append([torch.full((len(part_NS),), cost, dtype=torch.float64) for cost in (0, exits.spec.num_layers, 0)])
            else:
                thresholds_T = _token_thresholds(threshold, decay, part_NS.shape[1] - 1).repeat(len(part_NS))
                rows.append([cost_NT[:, 1:].mean(1) for cost_NT in simulator.costs(above_threshold(rule, thresholds_T))])
        parts.append(Costs(*(torch.stack(column) for column in zip(*rows, strict=True))))
    return Costs.join(parts)


def above_threshold(rule: str, thresholds_T: Tensor) -> ShouldExit:
    def should_exit(layer: int, rows_R: Tensor, exit_input: ExitInput) -> Tensor:
        return confidence(rule, exit_input) > thresholds_T[rows_R]

    return should_exit


def request_risks(statistics: ExitStatistics, spec: ExitHeadsSpec, rule: str, thresholds: Sequence[float]) -> Costs:
    """Return the costs of a rule that tests the prompt's last token.

    The entire output then exits at one layer. No token misses keys and values of an earlier one there, so statistics of full passes
    are exact.
    """
    assert rule in REQUEST_CRITERIA
    confidence_ND = statistics.confidence[rule][:, :, prompt_length(statistics) - 1]
    passes_LND = confidence_ND > torch.tensor(thresholds)[:, None, None]
    return request_costs(statistics, spec, first_true(passes_LND, dim=2))


def request_bounds(costs: Costs) -> Tensor:
    """Return the largest loss of any sequence at any threshold, repeated for every threshold [L].

    An output that exits too early loses at every token, a hundred times the allowed mean. A few hundred sequences without such a
    loss at one threshold do not show that none will occur, so the bound takes all thresholds together.
    """
    return costs.risk_LN.amax().expand(len(costs.risk_LN))


def request_costs(statistics: ExitStatistics, spec: ExitHeadsSpec, exit_index_LN: Tensor) -> Costs:
    """Return the costs when all output of a sequence exits at exit ``exit_index_LN``; index D is no exit."""
    output = slice(prompt_length(statistics) - 1, None)
    nll_NDT = torch.cat((statistics.exit_nll_NDT, statistics.nll_NT[:, None]), dim=1)[:, :, output].double()
    loss_DN = (nll_NDT - nll_NDT[:, -1:]).mean(2).T
    kl_NDT = torch.cat((statistics.kl_NDT, torch.zeros_like(statistics.kl_NDT[:, :1])), dim=1)[:, :, output].double()
    layers_D = torch.tensor([*spec.layers, spec.num_layers], dtype=torch.float64)
    return Costs(loss_DN.gather(0, exit_index_LN), layers_D[exit_index_LN], kl_NDT.mean(2).T.gather(0, exit_index_LN))


def isolated_risks(statistics: ExitStatistics, rule: str, thresholds: Sequence[float], decay: float | None = DECAY) -> Tensor:
    """Estimate the loss of a rule that tests every token, [L, N] float64.

    The estimate ignores that exited tokens leave other keys and values for later tokens. One pass serves all thresholds. It is
    close, but it is for the choice of candidates, not for guarantees.
    """
    confidence_NDT = statistics.confidence[rule][:, :, 1:]
    nll_NDT = torch.cat((statistics.exit_nll_NDT, statistics.nll_NT[:, None]), dim=1)[:, :, 1:].double()
    rows = []
    for threshold in thresholds:
        passes_NDT = confidence_NDT > _token_thresholds(threshold, decay, confidence_NDT.shape[2] + 1)[1:]
        exit_index_NT = first_true(passes_NDT, dim=1)
        rows.append((nll_NDT.gather(1, exit_index_NT[:, None])[:, 0] - nll_NDT[:, -1]).mean(1))
    return torch.stack(rows)


def first_true(condition: Tensor, dim: int) -> Tensor:
    """Return the index of the first True along ``dim``, or the size of ``dim`` if there is none."""
    always = torch.ones_like(condition.narrow(dim, 0, 1))
    return torch.cat((condition, always), dim).long().argmax(dim)


def prompt_length(statistics: ExitStatistics) -> int:
    return max(1, statistics.nll_NT.shape[1] // 2)


def threshold_grid(
    statistics: ExitStatistics, rule: str, decay: float | None = DECAY, steps: int = GRID_STEPS
) -> tuple[float, ...]:
    """Return falling thresholds from ``NO_EXIT`` to one that all tokens pass.

    A share (i / n)² of the tokens passes threshold i of n. ``statistics`` must come from other sequences than the test: a grid that
    depends on those would invalidate it.
    """
    confidence_NT = statistics.confidence[rule].amax(1)
    if rule in REQUEST_CRITERIA:
        passing = confidence_NT[:, prompt_length(statistics) - 1]
    else:
        length = confidence_NT.shape[1]
        passing = torch.stack([_undecayed(confidence_NT[:, t], decay, t / length) for t in range(1, length)])
    quantiles = 1.0 - (torch.arange(1, steps + 1, dtype=torch.float64) / steps).square()
    values = passing.flatten().double().quantile(quantiles).clamp(0.0, NO_EXIT).tolist()
    # A token exits above its threshold, not at it, so the threshold is just below the quantile.
    return (NO_EXIT, *sorted({max(0.0, round(value - 1e-6, 6)) for value in values}, reverse=True))


def _token_thresholds(threshold: float, decay: float | None, length: int) -> Tensor:
    """Return the threshold of each token, [T]. The first token is the prompt and never exits."""
    return torch.tensor([math.inf, *(decayed_threshold(threshold, decay, t / length) for t in range(1, length))])


def _undecayed(confidence_R: Tensor, decay: float | None, share: float) -> Tensor:
    """Return the thresholds that ``decayed_threshold`` maps to these confidences."""
    return confidence_R if decay is None else (confidence_R - 0.1 * math.exp(-decay * share)) / 0.9
