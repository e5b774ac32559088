"""Search for the bits of each layer: the least bytes within a KL, or the least KL within bytes.

::

    sensitivities ─► allocation ─► evaluate it ─► move the predicted limit ─► evaluate neighbours ─► confirm on other text
                         ▲                                  │                                              │
                         └────────── until it is met ───────┴───────────── tighten the limit ◄─────────────┘

The predicted KL, a sum over layers, only orders the assignments: whether one holds the limit is measured. A search that takes the
best of many assignments takes some for the luck of its text, so the result has to hold the limit on other text, too.

An assignment that fails there is followed by a safer one on the same text, so the luck of that text is tried more than once. The
error rates of the confirmations are a half, a quarter, an eighth, ... of ``ERROR_RATE``: by the union bound, the rate at which
any of them errs is below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hasten.compress.quantize.mixed.assignment import Assignment, ModelBytes
from hasten.compress.quantize.mixed.kl_estimate import ERROR_RATE, KlEstimate
from hasten.compress.quantize.mixed.kl_evaluator import UNQUANTIZED
from hasten.compress.quantize.mixed.sensitivity import Evaluate, Sensitivities
from hasten.core.errors import InvalidOption

MAX_STEPS = 10  # evaluations for finding the predicted limit; halving alone narrows it to a thousandth
MAX_NEIGHBORS = 8  # evaluations of assignments that the prediction puts just behind
MAX_CONFIRMATIONS = 8  # on other text, before all layers stay as they are
ADDITIVITY = 1.1  # a measured KL exceeds a prediction that is scaled to a neighbour by at most this factor, as a rule

Progress = Callable[[int, int], None]  # evaluations done, and at most


def search_least_bytes(
    sizes: ModelBytes, evaluate: Evaluate, confirm: Evaluate, max_kl: float, progress: Progress = lambda done, total: None
) -> Assignment:
    """Return the assignment of the least bytes found whose upper bound of the KL is at most ``max_kl``.

    ``evaluate`` and ``confirm`` measure on different text. Raises ``InvalidOption`` for a limit below 0.
    """
    if not 0 <= max_kl < math.inf:
        raise InvalidOption("max_kl is out of range", got=max_kl, allowed="a number of nats per token from 0")
    search = _Search(sizes, evaluate, confirm, progress, MAX_STEPS + MAX_NEIGHBORS + MAX_CONFIRMATIONS + 1)
    return search.least_bytes(max_kl)


def search_least_kl(
    sizes: ModelBytes, evaluate: Evaluate, confirm: Evaluate, target_bytes: int, progress: Progress = lambda done, total: None
) -> Assignment:
    """Return the assignment of the least KL found whose file has at most ``target_bytes``.

    ``confirm`` measures the reported KL on other text. Raises ``InvalidOption`` if no assignment is small enough.
    """
    least = sizes.others + sum(min(layer.values()) for layer in sizes.layers)
    if target_bytes < least:
        raise InvalidOption(
            "target_bytes is less than the model takes with the fewest bits in every layer",
            got=target_bytes,
            allowed=f"at least {least}",
        )
    return _Search(sizes, evaluate, confirm, progress, 1 + MAX_NEIGHBORS + 1).least_kl(target_bytes)


def confirmation_error_rate(number: int) -> float:
    """Return the error rate of a confirmation; the first has number 1."""
    return ERROR_RATE * 0.5**number


@dataclass(slots=True)
class _Search:
    sizes: ModelBytes
    evaluate: Evaluate
    confirm: Evaluate
    progress: Progress
    max_trials: int  # evaluations after the sensitivities
    _known: dict[tuple[int, ...], KlEstimate] = field(default_factory=dict)
    _confirmed: dict[tuple[int, ...], KlEstimate] = field(default_factory=dict)
    _sensitivities: Sensitivities = field(init=False)

    def __post_init__(self) -> None:
        self._sensitivities = Sensitivities.measure(self._measure, self.sizes)

    def least_bytes(self, max_kl: float) -> Assignment:
        bits = self._cheaper_neighbor(self._cheapest(max_kl), max_kl)
        for number in range(1, MAX_CONFIRMATIONS + 1):
            confirmed = self._measure_other(bits)
            if confirmed.upper(confirmation_error_rate(number)) <= max_kl:
                return self._assignment(bits, confirmation_error_rate(number))
            bits = self._safer(bits, max_kl, confirmed.upper(confirmation_error_rate(number + 1)))
        return self._assignment(self._unquantized)

    def least_kl(self, max_bytes: int) -> Assignment:
        predict = self._sensitivities.predict
        bits = self._sensitivities.least_kl(max_bytes)
        assert bits is not None, "the caller has checked the bytes"
        best = self._measure(bits)
        for trial in self._sensitivities.neighbors(bits, max_bytes)[:MAX_NEIGHBORS]:
            if predict(trial) < ADDITIVITY * predict(bits) and self._measure(trial).mean < best.mean:
                bits, best = trial, self._measure(trial)
        return self._assignment(bits)

    def _cheapest(self, max_kl: float) -> tuple[int, ...]:
        """Return the cheapest assignment, of those best by prediction, whose measured KL holds the limit.

        The predicted limit lies between that of ``bits``, which hold the measured limit, and ``too_high``.
        """
        predict, bits, too_high, limit = self._sensitivities.predict, self._unquantized, math.inf, max_kl
        for _ in range(MAX_STEPS):
            trial = self._sensitivities.least_bytes(limit)
            if trial is None or predict(trial) <= predict(bits):
                # Nothing between ``bits`` and this limit: what is left lies between it and ``too_high``.
                limit = math.nextafter(too_high, 0)
                trial = self._sensitivities.least_bytes(limit)
                if trial is None or predict(trial) <= predict(bits):
                    break
            upper = self._upper(trial)
            if upper <= max_kl:
                bits = trial
            else:
                too_high = predict(trial)
            scaled = predict(trial) * max_kl / upper if upper > 0 else math.inf
            limit = scaled if predict(bits) < scaled < too_high else (predict(bits) + too_high) / 2
        return bits

    def _cheaper_neighbor(self, bits: tuple[int, ...], max_kl: float) -> tuple[int, ...]:
        """Return an assignment of fewer bytes near ``bits`` that holds the limit, or ``bits``."""
        predict, budget, is_better = self._sensitivities.predict, MAX_NEIGHBORS, True
        while is_better:
            is_better, scale = False, self._upper(bits) / (predict(bits) or 1.0)
            for trial in self._sensitivities.neighbors(bits, self.sizes.total(bits) - 1):
                if budget == 0 or scale * predict(trial) > ADDITIVITY * max_kl:
                    break
                budget -= trial not in self._known
                if self._upper(trial) <= max_kl:
                    bits, is_better = trial, True
                    break
        return bits

    def _safer(self, bits: tuple[int, ...], max_kl: float, upper: float) -> tuple[int, ...]:
        """Return the cheapest assignment that the confirmation lets hold the limit.

        Its prediction is scaled to the bound of ``bits`` on other text.
        """
        predicted = self._sensitivities.predict(bits)
        scaled = predicted * max_kl / upper
        return self._sensitivities.least_bytes(min(scaled, math.nextafter(predicted, 0))) or self._unquantized

    @property
    def _unquantized(self) -> tuple[int, ...]:
        return (UNQUANTIZED,) * len(self.sizes.layers)

    def _upper(self, bits: tuple[int, ...]) -> float:
        """Return the bound on the text of the search, at the error rate of the first confirmation."""
        return self._measure(bits).upper(confirmation_error_rate(1))

    def _measure(self, bits: tuple[int, ...]) -> KlEstimate:
        if bits not in self._known:
            self._known[bits] = self.evaluate(bits)
            self._report()
        return self._known[bits]

    def _measure_other(self, bits: tuple[int, ...]) -> KlEstimate:
        if bits not in self._confirmed:
            self._confirmed[bits] = self.confirm(bits)
            self._report()
        return self._confirmed[bits]

    def _report(self) -> None:
        singles = 1 + sum(len(layer) - 1 for layer in self.sizes.layers)  # all layers at 16 bits are one assignment
        done = len(self._known) + len(self._confirmed)
        self.progress(done, max(done, singles + self.max_trials))

    def _assignment(self, bits: tuple[int, ...], error_rate: float = ERROR_RATE) -> Assignment:
        kl = self._measure_other(bits)
        return Assignment(
            bits=bits,
            num_bytes=self.sizes.total(bits),
            kl=kl.mean,
            kl_upper=kl.upper(error_rate),
            predicted_kl=self._sensitivities.predict(bits),
            layers=self._sensitivities.layers,
            num_evaluations=len(self._known) + len(self._confirmed),
        )
