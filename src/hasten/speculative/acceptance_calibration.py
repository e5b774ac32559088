"""Calibrated acceptance probabilities: how often draft tokens of a kind became output.

A drafter's own probability is biased: greedy requests take the most likely token, however likely it is. So outcomes are counted by
kind of draft token (histogram binning, Zadrozny and Elkan, 2001).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

MAX_LOG_ODDS = 6  # probabilities are told apart between odds of 1 to 2**6 and 2**6 to 1


class AcceptanceCalibration:
    """Keys name kinds of draft tokens; a draft token may have several, the most general first."""

    def __init__(self, decay: float = 0.99, prior_weight: float = 4.0) -> None:
        """``decay``: weight of an outcome after the next one. ``prior_weight``: in outcomes."""
        self._decay, self._prior_weight = decay, prior_weight
        self._counts: dict[Hashable, tuple[float, float]] = {}  # key -> (outcomes, accepted ones)

    def probability(self, keys: Sequence[Hashable], prior: float) -> float:
        """Return the probability of acceptance after an accepted parent; 0 where ``prior`` is 0 or NaN."""
        if not prior > 0.0:
            return 0.0
        for key in keys:  # the estimate of a key is the prior of the next
            outcomes, accepted = self._counts.get(key, (0.0, 0.0))
            prior = (accepted + self._prior_weight * prior) / (outcomes + self._prior_weight)
        return prior

    def record(self, keys: Sequence[Hashable], *, accepted: bool) -> None:
        for key in keys:
            outcomes, hits = self._counts.get(key, (0.0, 0.0))
            self._counts[key] = self._decay * outcomes + 1.0, self._decay * hits + accepted


def log_odds_bin(probability: float) -> int:
    """Return one bin for each doubling of the odds. ``probability`` is above 0."""
    return round(max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, math.log2(probability / max(1.0 - probability, 1e-9)))))
