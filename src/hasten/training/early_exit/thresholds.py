"""Confidence thresholds whose loss is guaranteed.

Learn-then-Test (Angelopoulos et al., 2021, arXiv 2110.01052). Thresholds are tested in falling order. The null hypothesis is that
the mean loss is larger than allowed. The result is the last threshold before the first one whose null hypothesis is not rejected.
The order is fixed beforehand, so the probability of a bad threshold is at most 1 - certainty for any number of them (fixed-sequence
testing).

The test is a betting test (Waudby-Smith & Ramdas, 2020, arXiv 2010.09686): a bettor stakes on losses below the allowed one. Under
the null hypothesis, capital grows to 1 / (1 - certainty) with probability 1 - certainty at most (Ville's inequality). Stakes follow
the variance seen so far, so few sequences suffice where losses are even.

Plain numbers, no model. Shape suffixes: L thresholds · N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.early_exit import ExitCalibration

NO_EXIT = 1.12  # a threshold that no token passes, decayed or not; it has no loss and needs no test
CERTAINTY = 0.95
TOLERANCES = (0.005, 0.01, 0.02, 0.05)
# The test needs bounded losses; a larger loss counts as the bound. A low bound allows high stakes but hides large losses, so it is
# this multiple of the largest loss on other sequences, and at least this multiple of the allowed loss.
BOUND_FACTOR, MIN_BOUND_FACTOR = 2.0, 10.0
MAX_STAKE = 0.9  # share of the capital that the worst sequence can take
PRIOR_DEVIATION = 2.0  # standard deviation assumed before the first sequence, in multiples of the allowed loss


@dataclass(frozen=True, slots=True)
class Costs:
    """Means over the tokens of each sequence that may exit, float64 [L, N]."""

    risk_LN: Tensor  # loss of the next token, nats per token
    layers_LN: Tensor  # layers computed
    kl_LN: Tensor  # KL(full model || with exits), nats per token

    def of(self, sequences: Tensor) -> Costs:
        """Return the costs of some of the sequences."""
        return Costs(self.risk_LN[:, sequences], self.layers_LN[:, sequences], self.kl_LN[:, sequences])

    @classmethod
    def join(cls, parts: Sequence[Costs]) -> Costs:
        """Concatenate the sequences of parts with the same thresholds."""
        columns = zip(*((part.risk_LN, part.layers_LN, part.kl_LN) for part in parts), strict=True)
        return cls(*(torch.cat(column, 1) for column in columns))


def allowed_loss(tolerance: float) -> float:
    """Return the loss in nats per token that raises perplexity by ``tolerance``."""
    return math.log1p(tolerance)


def p_values(risk_LN: Tensor, largest_L: Tensor, allowed: float, certainty: float = CERTAINTY) -> Tensor:
    """Return the p-value of "the mean loss is at least ``allowed``" per threshold, [L] float64.

    Losses are clipped at a bound. ``largest_L`` is the largest loss to expect of a sequence, from other sequences. The p-values are
    valid for any number of identically distributed sequences in an order that does not depend on their losses. ``certainty`` only
    tunes the stakes.
    """
    bound_L1 = (BOUND_FACTOR * largest_L.double()).clamp(min=MIN_BOUND_FACTOR * allowed)[:, None]
    prior_variance = (PRIOR_DEVIATION * allowed) ** 2
    loss_LN = torch.minimum(risk_LN.double(), bound_L1)
    count = loss_LN.shape[1]
    seen_N = torch.arange(1, count + 1, dtype=torch.float64)
    mean_LN = (allowed + loss_LN.cumsum(1)) / (seen_N + 1)
    variance_LN = (prior_variance + (loss_LN - mean_LN).square().cumsum(1)) / (seen_N + 1)
    # A stake may depend on earlier sequences only.
    known_LN = torch.cat((torch.full_like(variance_LN[:, :1], prior_variance), variance_LN[:, :-1]), dim=1)
    stake_LN = (2 * math.log(1 / (1 - certainty)) / (count * known_LN)).sqrt()
    stake_LN = torch.minimum(stake_LN, MAX_STAKE / (bound_L1 - allowed))
    log_capital_LN = torch.log1p(stake_LN * (allowed - loss_LN)).cumsum(1)
    return torch.exp(-log_capital_LN.amax(1).clamp(min=0.0))


def select_threshold(risk_LN: Tensor, largest_L: Tensor, tolerance: float, certainty: float = CERTAINTY) -> int:
    """Return the index of the lowest threshold that passes all tests.

    Thresholds fall, and the first is ``NO_EXIT``. A threshold whose unclipped mean loss on these sequences is not allowed does not
    pass.
    """
    allowed = allowed_loss(tolerance)
    passes_L = (p_values(risk_LN, largest_L, allowed, certainty) <= 1 - certainty) & (risk_LN.mean(1) <= allowed)
    return int(passes_L[1:].long().cumprod(0).sum())


def calibrate_thresholds(
    rule: str,
    costs: Costs,
    largest_L: Tensor,
    thresholds: tuple[float, ...],
    *,
    seq_len: int,
    decay: float | None,
    tolerances: tuple[float, ...] = TOLERANCES,
    certainty: float = CERTAINTY,
) -> tuple[ExitCalibration, ...]:
    """Return one calibration per tolerance. That all guarantees hold together is less certain than each."""
    assert thresholds[0] == NO_EXIT and list(thresholds) == sorted(thresholds, reverse=True), thresholds
    calibrations = []
    for tolerance in tolerances:
        index = select_threshold(costs.risk_LN, largest_L, tolerance, certainty)
        calibrations.append(
            ExitCalibration(
                rule=rule,
                tolerance=tolerance,
                certainty=certainty,
                threshold=thresholds[index],
                decay=decay,
                window=seq_len,
                num_texts=costs.risk_LN.shape[1],
                mean_layers=float(costs.layers_LN[index].mean()),
                mean_risk=float(costs.risk_LN[index].mean()),
            )
        )
    return tuple(calibrations)
