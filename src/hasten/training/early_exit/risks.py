"""What leaving early costs on texts, for a whole list of thresholds: nats lost on the token that came, and layers computed.

For rules that ask every token a text is an answer after a prompt of one token; for those that ask once, its first half is the
prompt. Tokens are those of the text, not those that the model would have written after exits.

Shape suffixes: N texts · W tokens of a text · T tokens read · D exits · L thresholds · E hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.early_exit import DECAY, REQUEST_CRITERIA, decayed
from hasten.early_exit.base import Reading
from hasten.layers.exits import Exits
from hasten.training.early_exit.annotate import Annotations, portions
from hasten.training.early_exit.run_with_exits import Decide, approach, confidence, run_with_exits
from hasten.training.early_exit.thresholds import SAFE, Costs
from hasten.training.target_model import TargetModel

STEPS = 20  # of a grid


def token_risks(
    target: TargetModel, exits: Exits, texts_NW: Tensor, rule: str, thresholds: Sequence[float], decay: float | None = DECAY
) -> Costs:
    """Of a rule that asks every token but the first, which is the prompt."""
    length = texts_NW.shape[1] - 1
    limits = [_limits(threshold, decay, length) for threshold in thresholds]
    parts = []
    for part_NW in portions(texts_NW, exits.spec.vocab_size):
        start, whole = approach(target, exits, part_NW[:, :-1]), Whole.read(target, part_NW)
        rows = []
        for threshold, limit_T in zip(thresholds, limits, strict=True):
            if threshold >= SAFE:
                rows.append([torch.full((len(part_NW),), value, dtype=torch.float64) for value in (0, exits.spec.num_layers, 0)])
                continue
            result = run_with_exits(target, exits, start, _measured(rule, limit_T.repeat(len(part_NW))))
            loss_NT, kl_NT = whole.compared(target, result.hidden_TE)
            columns_NT = (loss_NT, result.depth_T.view(loss_NT.shape).double(), kl_NT)
            rows.append([column_NT[:, 1:].mean(1) for column_NT in columns_NT])
        parts.append(Costs(*(torch.stack(column) for column in zip(*rows, strict=True))))
    return Costs.join(parts)


def request_risks(found: Annotations, layers: Sequence[int], num_layers: int, rule: str, thresholds: Sequence[float]) -> Costs:
    """Of a rule that asks the prompt's last token for the whole answer: then all of it leaves at one layer, and nothing that it
    sees is missing, so what exits say of whole texts is all there is to know.
    """
    assert rule in REQUEST_CRITERIA
    sure_ND = found.sure[rule][:, :, prompt_length(found) - 1]
    rows = []
    for threshold in thresholds:
        passes_ND = torch.cat((sure_ND > threshold, torch.ones(len(sure_ND), 1, dtype=torch.bool)), dim=1)
        rows.append(depth_costs(found, layers, num_layers, passes_ND.long().argmax(1)))
    return Costs(*(torch.stack(column) for column in zip(*rows, strict=True)))


def request_bounds(listed: Costs) -> Tensor:
    """What ``calibrate`` has to fear at each threshold of ``request_risks``: the largest loss of any listed text at any exit. [L]

    An answer that leaves too early loses everywhere, so one text that is wrongly sure costs a hundred times what is allowed on
    average. That none did at one threshold, of a few hundred texts, is no reason to believe that none will.
    """
    return listed.risk_LN.amax().expand(len(listed.risk_LN))


def depth_costs(found: Annotations, layers: Sequence[int], num_layers: int, place_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, layers and KL of each text whose answer leaves at exit ``place_N``; their number: not at all. [N] each, float64"""
    answer = slice(prompt_length(found) - 1, None)
    nll_NDT = torch.cat((found.exit_nll_NDT, found.nll_NT[:, None]), dim=1)[:, :, answer].double()
    loss_ND = (nll_NDT - nll_NDT[:, -1:]).mean(2)
    kl_ND = torch.cat((found.kl_NDT, torch.zeros_like(found.kl_NDT[:, :1])), dim=1)[:, :, answer].double().mean(2)
    depth_D = torch.tensor([*layers, num_layers], dtype=torch.float64)
    return loss_ND.gather(1, place_N[:, None])[:, 0], depth_D[place_N], kl_ND.gather(1, place_N[:, None])[:, 0]


def isolated_risks(found: Annotations, rule: str, thresholds: Sequence[float], decay: float | None = DECAY) -> Tensor:
    """What a rule that asks every token would lose if no later token missed what the layers behind an exit compute. [L, N], float64

    One pass for all thresholds, and close to the truth: to look ahead with, not to promise by.
    """
    sure_NDT = found.sure[rule][:, :, 1:]
    nll_NDT = torch.cat((found.exit_nll_NDT, found.nll_NT[:, None]), dim=1)[:, :, 1:].double()
    rows = []
    for threshold in thresholds:
        passes_NDT = sure_NDT > _limits(threshold, decay, sure_NDT.shape[2] + 1)[1:]
        place_NT = torch.cat((passes_NDT, torch.ones_like(passes_NDT[:, :1])), dim=1).long().argmax(1)
        rows.append((nll_NDT.gather(1, place_NT[:, None])[:, 0] - nll_NDT[:, -1]).mean(1))
    return torch.stack(rows)


def prompt_length(found: Annotations) -> int:
    return max(1, found.nll_NT.shape[1] // 2)


def grid(found: Annotations, rule: str, decay: float | None = DECAY, steps: int = STEPS) -> tuple[float, ...]:
    """Thresholds that sink from ``SAFE`` until everything leaves: after step i of n a share of (i / n)² of the tokens.

    Chosen on other texts than they are tested on: a list that looks at those would void the test.
    """
    most_NT = found.sure[rule].amax(1)
    if rule in REQUEST_CRITERIA:
        passing = most_NT[:, prompt_length(found) - 1]
    else:
        length = most_NT.shape[1]
        passing = torch.stack([_undecayed(most_NT[:, t], decay, t / length) for t in range(1, length)])
    points = 1.0 - (torch.arange(1, steps + 1, dtype=torch.float64) / steps).square()
    values = passing.flatten().double().quantile(points).clamp(0.0, SAFE).tolist()
    # Just under the quantile: a token leaves above its threshold, not at it.
    sinking = sorted({max(0.0, round(value - 1e-6, 6)) for value in values}, reverse=True)
    return (SAFE, *sinking)


@dataclass(frozen=True, slots=True)
class Whole:
    """What the whole model says of every token of some texts."""

    shape: tuple[int, int]
    wanted_T1: Tensor  # the tokens that came
    logp_TV: Tensor
    share_TV: Tensor

    @classmethod
    @torch.no_grad()
    def read(cls, target: TargetModel, texts_NW: Tensor) -> Whole:
        last_TE = target.states(texts_NW[:, :-1]).last_TE
        shape = (len(texts_NW), texts_NW.shape[1] - 1)
        logp_TV = target.decoder.head(last_TE).log_softmax(-1)
        return cls(shape, texts_NW[:, 1:].reshape(-1, 1), logp_TV, logp_TV.exp())

    @torch.no_grad()
    def compared(self, target: TargetModel, hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Nats that states in the place of the last ones lose on every token, and their KL from the whole model. [N, T], float64"""
        logq_TV = target.decoder.head(hidden_TE).log_softmax(-1)
        lost_T = (self.logp_TV.gather(-1, self.wanted_T1) - logq_TV.gather(-1, self.wanted_T1))[:, 0]
        kl_T = torch.linalg.vecdot(self.share_TV, self.logp_TV - logq_TV).clamp(min=0.0)
        return lost_T.view(self.shape).double(), kl_T.view(self.shape).double()


def _limits(threshold: float, decay: float | None, length: int) -> Tensor:
    """What each token of a text has to be above. The first one is the prompt. [T]"""
    return torch.tensor([math.inf, *(decayed(threshold, decay, place / length) for place in range(1, length))])


def _measured(rule: str, limit_T: Tensor) -> Decide:
    def decide(layer: int, rows_R: Tensor, reading: Reading) -> Tensor:
        return confidence(rule, reading) > limit_T[rows_R]

    return decide


def _undecayed(sure_R: Tensor, decay: float | None, share: float) -> Tensor:
    """The threshold that, decayed, is this sure."""
    return sure_R if decay is None else (sure_R - 0.1 * math.exp(-decay * share)) / 0.9
