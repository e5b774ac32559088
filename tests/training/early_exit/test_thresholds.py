"""The test is valid and powerful: it seldom rejects a true null hypothesis, and few sequences suffice."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hasten.training.corpus import Corpus
from hasten.training.early_exit import thresholds as module
from hasten.training.early_exit.risks import request_bounds
from hasten.training.early_exit.thresholds import (
    MIN_BOUND_FACTOR,
    NO_EXIT,
    Costs,
    allowed_loss,
    calibrate_thresholds,
    p_values,
    select_threshold,
)

ALLOWED = allowed_loss(0.01)
TRIALS, SEQUENCES = 4000, 120

# Losses of several distributions whose mean is exactly the allowed loss. [trials, sequences]
Draw = Callable[[torch.Generator], Tensor]


def two_points(low: float, high: float) -> Draw:
    share = (ALLOWED - low) / (high - low)
    return lambda generator: low + (high - low) * (torch.rand(TRIALS, SEQUENCES, generator=generator, dtype=torch.float64) < share)


def normal(deviation: float) -> Draw:
    return lambda generator: ALLOWED + deviation * torch.randn(TRIALS, SEQUENCES, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator) -> Tensor:
    return 2 * ALLOWED * torch.rand(TRIALS, SEQUENCES, generator=generator, dtype=torch.float64)


NULLS: dict[str, Draw] = {
    "rare and large": two_points(0.0, MIN_BOUND_FACTOR * ALLOWED),
    "rare and medium": two_points(0.0, 3 * ALLOWED),
    "gains, and rare large losses": two_points(-0.01, MIN_BOUND_FACTOR * ALLOWED),
    "two-sided": two_points(-0.05, 0.05),
    "narrow": normal(0.002),
    "as wide as measured ones": normal(0.015),
    "uniform": uniform,
}


def p(losses: Tensor, largest: float = 0.0) -> Tensor:
    return p_values(losses, torch.full((len(losses),), largest), ALLOWED)


def rejection_rate(name: str) -> float:
    """Return how often a true null hypothesis is rejected at a certainty of 95 %."""
    generator = torch.Generator().manual_seed(5)
    return float((p(NULLS[name](generator)) <= 0.05).double().mean())


@pytest.mark.parametrize("name", NULLS)
def test_a_true_null_hypothesis_is_rejected_at_most_as_often_as_stated(name: str) -> None:
    assert rejection_rate(name) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("fault", ["stakes depend on the sequence", "stakes exceed the capital"])
def test_an_invalid_test_is_detected(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    if fault == "stakes exceed the capital":
        monkeypatch.setattr(module, "MAX_STAKE", 5.0)
        monkeypatch.setattr(module.torch, "log1p", lambda x: torch.log((1 + x).abs()))
    else:
        cat = torch.cat

        def cat_with_lookahead(parts: tuple[Tensor, ...], dim: int) -> Tensor:
            """Give sequences of low loss a low variance, so that their stakes are high."""
            return torch.where(losses < ALLOWED, 1e-12, cat(parts, dim=dim))

        monkeypatch.setattr(module.torch, "cat", cat_with_lookahead)
    rates = []
    for name in NULLS:
        losses = NULLS[name](torch.Generator().manual_seed(5)).clamp(max=MIN_BOUND_FACTOR * ALLOWED)
        rates.append(rejection_rate(name))
    assert max(rates) > 0.1, rates


def test_few_sequences_suffice_for_allowed_losses() -> None:
    """Losses as wide as those of the demo model. Hoeffding's bound would need 40 times as many sequences."""
    generator = torch.Generator().manual_seed(1)
    losses = 0.005 + 0.012 * torch.randn(500, 256, generator=generator, dtype=torch.float64)
    assert float((p(losses) <= 0.05).double().mean()) > 0.95
    assert float(p(torch.zeros(1, 64))) < 0.05


def test_a_p_value_does_not_depend_on_other_thresholds() -> None:
    losses = torch.randn(5, 60, generator=torch.Generator().manual_seed(2)) * 0.02
    together = p(losses)
    assert together.tolist() == [float(p(row[None])) for row in losses]
    assert bool(((together > 0) & (together <= 1)).all())
    assert float(p(torch.full((1, 60), 3.0))) == 1.0


def test_the_bound_does_not_hide_rare_large_losses() -> None:
    """Three sequences of a hundred lose two nats, so the mean is six times the allowed loss."""
    losses = torch.zeros(200, 256, dtype=torch.float64)
    losses[torch.rand(200, 256, generator=torch.Generator().manual_seed(6)) < 0.03] = 2.0
    assert float((p(losses, largest=2.0) <= 0.05).double().mean()) == 0.0
    assert float((p(losses) <= 0.05).double().mean()) > 0.5, "a low bound hides the loss"
    both = torch.stack((torch.zeros(256, dtype=torch.float64), losses[0]))
    assert select_threshold(both, torch.zeros(2), 0.01) == 0, "the unclipped mean is tested, too"
    # With large losses on other sequences, more sequences without a loss are needed.
    zeros = torch.zeros(1, 256, dtype=torch.float64)
    assert float(p(zeros)) < 1e-4 < 0.05 < float(p(zeros, largest=2.0))


def rows(*means: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.stack([mean + 0.004 * torch.randn(200, generator=generator, dtype=torch.float64) for mean in means])


def test_testing_stops_at_the_first_threshold_that_does_not_pass() -> None:
    """The guarantee holds only if a later threshold that would pass is not considered."""
    cases = [((0.0, 0.002, 0.003, 0.02, 0.03), 2), ((0.0, 0.02, 0.0, 0.0), 0), ((0.0, 0.001, 0.02, 0.0), 1)]
    cases += [((0.0, 0.001, 0.002, 0.003), 3), ((0.5,), 0)]
    for means, expected in cases:
        assert select_threshold(rows(*means), torch.zeros(len(means)), 0.01) == expected, means


def test_fixed_sequence_testing_selects_a_bad_threshold_at_most_as_often_as_stated() -> None:
    """Most thresholds are bad, some only slightly. At most 5 % of the trials select a bad one."""
    generator = torch.Generator().manual_seed(4)
    means = torch.tensor([0.0, 0.006, 0.008, ALLOWED, ALLOWED, ALLOWED * 1.001, ALLOWED * 1.01, 0.011, 0.012, 0.02])
    trials = 400
    bad = 0
    for _ in range(trials):
        common = 0.01 * torch.randn(SEQUENCES, generator=generator)  # a hard sequence is hard at every threshold
        losses = means[:, None] + common + 0.005 * torch.randn(len(means), SEQUENCES, generator=generator)
        bad += select_threshold(losses.double(), torch.zeros(len(means)), 0.01) >= 3
    assert bad / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("changes", [2, 4, 25])
def test_the_guarantee_holds_for_one_long_document_that_changes(changes: int) -> None:
    """A quarter of it is easy, in ``changes`` passages. The mean loss on all of it is not allowed."""
    seq_len, num_sequences, trials = 32, 1600, 200
    wrong = 0
    for trial in range(trials):
        first = trial * num_sequences * seq_len
        corpus = Corpus.split([range(first, first + num_sequences * seq_len)], seq_len, 0.1, None)
        calibration_NS = corpus.calibration_sequences(seq_len, num_sequences, 0)
        position_N = (calibration_NS.double().mean(1) - first) / (num_sequences * seq_len)
        easy_N = (position_N * changes % 1) < 0.25
        loss_N = torch.where(easy_N, 0.1, 1.31).double() * ALLOWED
        wrong += float(p(loss_N[None])) <= 0.05
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("bound", [request_bounds, lambda costs: costs.risk_LN.amax(1)])
def test_requests_that_exit_as_a_unit_keep_the_guarantee(bound: Callable[[Costs], Tensor]) -> None:
    """One sequence in 25 loses thirty times the allowed loss, so most samples have no such sequence."""
    generator = torch.Generator().manual_seed(7)
    thresholds = torch.tensor([NO_EXIT, 0.96, 0.9, 0.5, 0.0], dtype=torch.float64)[:, None]

    def draw_costs(count: int) -> Costs:
        loss_N = -0.3 * torch.rand(count, generator=generator, dtype=torch.float64).log()
        risk_LN = loss_N * (torch.rand(count, generator=generator, dtype=torch.float64) > thresholds)
        return Costs(risk_LN, risk_LN, risk_LN)

    bad = 0
    for _ in range(200):
        train, validation = draw_costs(64), draw_costs(160)
        bad += select_threshold(validation.risk_LN, bound(train), 0.01) > 0
    assert bad / 200 <= 0.05 if bound is request_bounds else bad / 200 > 0.05, "a bound per threshold would have been enough"


def test_a_calibration_reports_threshold_and_cost() -> None:
    layers = torch.tensor([8.0, 7.0, 6.0, 5.0]).double()[:, None].expand(4, 200)
    costs = Costs(rows(0.0, 0.002, 0.02, 0.2), layers, layers)
    calibrations = calibrate_thresholds(
        "softmax", costs, torch.zeros(4), (NO_EXIT, 0.9, 0.5, 0.1), seq_len=256, decay=4.0, tolerances=(0.01, 0.05)
    )
    assert [(each.tolerance, each.threshold, each.mean_layers) for each in calibrations] == [(0.01, 0.9, 7.0), (0.05, 0.5, 6.0)]
    assert {(each.rule, each.certainty, each.num_texts, each.window, each.decay) for each in calibrations} == {
        ("softmax", 0.95, 200, 256, 4.0)
    }
    assert calibrations[0].mean_risk == pytest.approx(0.002, abs=1e-3)
    half = costs.of(torch.arange(100))
    assert half.risk_LN.shape == half.layers_LN.shape == (4, 100)
