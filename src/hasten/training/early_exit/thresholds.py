"""From what exits cost on texts to a threshold that keeps a promise: Learn-then-Test (Angelopoulos et al., 2021, arXiv 2110.01052).

Thresholds are tested one after the other, from the most careful on. What is to be refuted is that a text loses more than is
allowed, on average; the last threshold before the first that is not refuted is taken. Because the order is fixed beforehand, the
chance that it is a bad one is at most 1 - certainty, however many there are (fixed-sequence testing).

A test is a bet (Waudby-Smith & Ramdas, 2020, arXiv 2010.09686): whoever stakes on a lower loss than is allowed cannot expect to
gain if the mean is not lower, and multiplies the capital by 1 / (1 - certainty) with a chance of 1 - certainty at most (Ville).
Stakes follow the variance that was seen so far, so that even losses need few texts.

Plain numbers: no model. Shape suffixes: L thresholds · N texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.exit_calibration import Calibration

SAFE = 1.12  # a threshold that no token passes, decayed or not: it costs nothing, so it needs no test
CERTAINTY = 0.95
TOLERANCES = (0.005, 0.01, 0.02, 0.05)
# A bet needs a bound: a text that loses more counts as this much. A near one allows high stakes but must not hide what is lost:
# it is so many times the largest loss that was seen on other texts, and at least so many times what is allowed.
SPARE, MOST = 2.0, 10.0
BOLDNESS = 0.9  # share of the capital that the worst text can take
PRIOR = 2.0  # standard deviation that is assumed before the first text, in units of what is allowed


@dataclass(frozen=True, slots=True)
class Costs:
    """Of every threshold and text, over the tokens that may leave. float64 [L, N]"""

    risk_LN: Tensor  # nats per token that the exits lose on the token that came
    layers_LN: Tensor  # that computed a token
    kl_LN: Tensor  # KL(whole model || what was left), nats per token

    def of(self, texts: Tensor) -> Costs:
        """On some of the texts."""
        return Costs(self.risk_LN[:, texts], self.layers_LN[:, texts], self.kl_LN[:, texts])

    @classmethod
    def join(cls, parts: Sequence[Costs]) -> Costs:
        """Of the same thresholds on one text after the other."""
        risk, layers, kl = zip(*((part.risk_LN, part.layers_LN, part.kl_LN) for part in parts), strict=True)
        return cls(torch.cat(risk, 1), torch.cat(layers, 1), torch.cat(kl, 1))


def allowed_loss(tolerance: float) -> float:
    """Nats per token by which perplexity rises by this share."""
    return math.log1p(tolerance)


def p_values(risk_LN: Tensor, largest_L: Tensor, allowed: float, certainty: float = CERTAINTY) -> Tensor:
    """Of "the mean loss is ``allowed`` or more", where no loss counts as more than its bound. [L], float64

    ``largest_L``: the largest loss of a text that is to be feared at each threshold, from other texts than these. Valid for any
    number of texts that are drawn alike. They are bet on in their order, which must not depend on their losses. ``certainty``
    tunes the stakes and is no condition.
    """
    most_L1, prior = (SPARE * largest_L.double()).clamp(min=MOST * allowed)[:, None], (PRIOR * allowed) ** 2
    loss_LN = torch.minimum(risk_LN.double(), most_L1)
    count = loss_LN.shape[1]
    seen_N = torch.arange(1, count + 1, dtype=torch.float64)
    mean_LN = (allowed + loss_LN.cumsum(1)) / (seen_N + 1)
    variance_LN = (prior + (loss_LN - mean_LN).square().cumsum(1)) / (seen_N + 1)
    # What was known before each text.
    known_LN = torch.cat((torch.full_like(variance_LN[:, :1], prior), variance_LN[:, :-1]), dim=1)
    stake_LN = (2 * math.log(1 / (1 - certainty)) / (count * known_LN)).sqrt()
    stake_LN = torch.minimum(stake_LN, BOLDNESS / (most_L1 - allowed))
    capital_LN = torch.log1p(stake_LN * (allowed - loss_LN)).cumsum(1)
    return torch.exp(-capital_LN.amax(1).clamp(min=0.0))


def chosen(risk_LN: Tensor, largest_L: Tensor, tolerance: float, certainty: float = CERTAINTY) -> int:
    """The place of the threshold to take. Thresholds sink, and the first one is ``SAFE``: it is taken where no other can be.

    One that loses more than is allowed on these very texts is not taken, whatever a bounded loss says.
    """
    allowed = allowed_loss(tolerance)
    good_L = (p_values(risk_LN, largest_L, allowed, certainty) <= 1 - certainty) & (risk_LN.mean(1) <= allowed)
    return int(good_L[1:].long().cumprod(0).sum())


def calibrate_thresholds(
    rule: str,
    costs: Costs,
    largest_L: Tensor,
    thresholds: tuple[float, ...],
    *,
    window: int,
    decay: float | None,
    tolerances: tuple[float, ...] = TOLERANCES,
    certainty: float = CERTAINTY,
) -> tuple[Calibration, ...]:
    """One for each tolerance. Each promise stands by itself: that all of them hold is less certain."""
    assert thresholds[0] == SAFE and list(thresholds) == sorted(thresholds, reverse=True), thresholds
    found = []
    for tolerance in tolerances:
        place = chosen(costs.risk_LN, largest_L, tolerance, certainty)
        found.append(
            Calibration(
                rule=rule,
                tolerance=tolerance,
                certainty=certainty,
                threshold=thresholds[place],
                decay=decay,
                window=window,
                num_texts=costs.risk_LN.shape[1],
                mean_layers=float(costs.layers_LN[place].mean()),
                mean_risk=float(costs.risk_LN[place].mean()),
            )
        )
    return tuple(found)
