"""The bet is fair: whoever should not win seldom does. And it is sharp: even losses are told from the limit by few texts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hasten.training.corpus import Corpus
from hasten.training.early_exit import thresholds as module
from hasten.training.early_exit.risks import request_bounds
from hasten.training.early_exit.thresholds import MOST, SAFE, Costs, allowed_loss, calibrate_thresholds, chosen, p_values

ALLOWED = allowed_loss(0.01)
TRIALS, TEXTS = 4000, 120

# Losses whose mean is just what is not allowed any more, in several shapes. [trials, texts]
Draw = Callable[[torch.Generator], Tensor]


def two_points(low: float, high: float) -> Draw:
    share = (ALLOWED - low) / (high - low)
    return lambda draw: low + (high - low) * (torch.rand(TRIALS, TEXTS, generator=draw, dtype=torch.float64) < share)


def normal(deviation: float) -> Draw:
    return lambda draw: ALLOWED + deviation * torch.randn(TRIALS, TEXTS, generator=draw, dtype=torch.float64)


def uniform(draw: torch.Generator) -> Tensor:
    return 2 * ALLOWED * torch.rand(TRIALS, TEXTS, generator=draw, dtype=torch.float64)


NULLS: dict[str, Draw] = {
    "rare and large": two_points(0.0, MOST * ALLOWED),
    "rare and middling": two_points(0.0, 3 * ALLOWED),
    "gains, and rare large losses": two_points(-0.01, MOST * ALLOWED),
    "both sides": two_points(-0.05, 0.05),
    "narrow": normal(0.002),
    "as wide as real ones": normal(0.015),
    "uniform": uniform,
}


def p(losses: Tensor, largest: float = 0.0) -> Tensor:
    return p_values(losses, torch.full((len(losses),), largest), ALLOWED)


def share_refuted(name: str) -> float:
    """How often a mean that is not allowed is refuted at a certainty of 95 %."""
    draw = torch.Generator().manual_seed(5)
    return float((p(NULLS[name](draw)) <= 0.05).double().mean())


@pytest.mark.parametrize("name", NULLS)
def test_what_is_true_is_refuted_as_seldom_as_promised(name: str) -> None:
    assert share_refuted(name) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("fault", ["stakes know the text", "a text can take more than all"])
def test_an_unfair_bet_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    if fault == "a text can take more than all":
        monkeypatch.setattr(module, "BOLDNESS", 5.0)
        monkeypatch.setattr(module.torch, "log1p", lambda x: torch.log((1 + x).abs()))
    else:
        joined = torch.cat

        def knows(parts: tuple[Tensor, ...], dim: int) -> Tensor:
            """The place before a text holds the variance with it: texts that lost little are staked on as if that were known."""
            return torch.where(module_loss[0] < ALLOWED, 1e-12, joined(parts, dim=dim))

        monkeypatch.setattr(module.torch, "cat", knows)
    found = []
    for name in NULLS:
        module_loss = [NULLS[name](torch.Generator().manual_seed(5)).clamp(max=MOST * ALLOWED)]
        found.append(share_refuted(name))
    assert max(found) > 0.1, found


def test_losses_that_are_allowed_are_found_by_few_texts() -> None:
    """As wide as those of the demo model; Hoeffding's bound would need 40 times as many texts."""
    draw = torch.Generator().manual_seed(1)
    losses = 0.005 + 0.012 * torch.randn(500, 256, generator=draw, dtype=torch.float64)
    assert float((p(losses) <= 0.05).double().mean()) > 0.95
    assert float(p(torch.zeros(1, 64))) < 0.05


def test_a_p_value_does_not_depend_on_other_thresholds_or_tell_nonsense() -> None:
    losses = torch.randn(5, 60, generator=torch.Generator().manual_seed(2)) * 0.02
    together = p(losses)
    assert together.tolist() == [float(p(row[None])) for row in losses]
    assert bool(((together > 0) & (together <= 1)).all())
    assert float(p(torch.full((1, 60), 3.0))) == 1.0


def test_rare_disasters_are_not_hidden_by_the_bound() -> None:
    """Three texts of a hundred lose two nats: that is six times what is allowed, and a near bound would hide it."""
    losses = torch.zeros(200, 256, dtype=torch.float64)
    losses[torch.rand(200, 256, generator=torch.Generator().manual_seed(6)) < 0.03] = 2.0
    assert float((p(losses, largest=2.0) <= 0.05).double().mean()) == 0.0
    assert float((p(losses) <= 0.05).double().mean()) > 0.5, "this bound was to hide it"
    both = torch.stack((torch.zeros(256, dtype=torch.float64), losses[0]))
    assert chosen(both, torch.zeros(2), 0.01) == 0, "what is lost on the very texts is seen even so"
    # Without disasters elsewhere to be afraid of, nothing lost is soon enough; with them it takes more texts.
    nothing = torch.zeros(1, 256, dtype=torch.float64)
    assert float(p(nothing)) < 1e-4 < 0.05 < float(p(nothing, largest=2.0))


def rows(*means: float) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.stack([mean + 0.004 * torch.randn(200, generator=draw, dtype=torch.float64) for mean in means])


def test_the_sequence_ends_with_the_first_that_is_not_refuted() -> None:
    """A later threshold that would pass is not looked at: that is what the guarantee rests on."""
    cases = [((0.0, 0.002, 0.003, 0.02, 0.03), 2), ((0.0, 0.02, 0.0, 0.0), 0), ((0.0, 0.001, 0.02, 0.0), 1)]
    cases += [((0.0, 0.001, 0.002, 0.003), 3), ((0.5,), 0)]
    for means, wanted in cases:
        assert chosen(rows(*means), torch.zeros(len(means)), 0.01) == wanted, means


def test_a_whole_sequence_breaks_its_promise_as_seldom_as_it_says() -> None:
    """Thresholds of which most are bad, some just so: a bad one is chosen in at most 5 % of the draws."""
    draw = torch.Generator().manual_seed(4)
    means = torch.tensor([0.0, 0.006, 0.008, ALLOWED, ALLOWED, ALLOWED * 1.001, ALLOWED * 1.01, 0.011, 0.012, 0.02])
    trials = 400
    bad = 0
    for _ in range(trials):
        common = 0.01 * torch.randn(TEXTS, generator=draw)  # a hard text is hard at every threshold
        losses = means[:, None] + common + 0.005 * torch.randn(len(means), TEXTS, generator=draw)
        bad += chosen(losses.double(), torch.zeros(len(means)), 0.01) >= 3
    assert bad / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("changes", [2, 4, 25])
def test_the_promise_holds_for_one_long_text_that_changes(changes: int) -> None:
    """A quarter of it is easy, in so many passages; exits lose more than is allowed on all of it, and that is found out."""
    window, windows, draws = 32, 1600, 200
    wrong = 0
    for draw in range(draws):
        first = draw * windows * window
        corpus = Corpus.split([range(first, first + windows * window)], window, 0.1, None)
        place_N = (corpus.unread(window, windows, 0).double().mean(1) - first) / (windows * window)
        easy_N = (place_N * changes % 1) < 0.25
        loss_N = torch.where(easy_N, 0.1, 1.31).double() * ALLOWED
        wrong += float(p(loss_N[None])) <= 0.05
    assert wrong / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize("bound", [request_bounds, lambda listed: listed.risk_LN.amax(1)])
def test_answers_that_leave_as_a_whole_break_no_promise(bound: Callable[[Costs], Tensor]) -> None:
    """A text in 25 leaves at the first threshold, and loses thirty times what is allowed: most lists of texts show no such one."""
    draw = torch.Generator().manual_seed(7)
    thresholds = torch.tensor([SAFE, 0.96, 0.9, 0.5, 0.0], dtype=torch.float64)[:, None]

    def costs(texts: int) -> Costs:
        lost_N = -0.3 * torch.rand(texts, generator=draw, dtype=torch.float64).log()
        risk_LN = lost_N * (torch.rand(texts, generator=draw, dtype=torch.float64) > thresholds)
        return Costs(risk_LN, risk_LN, risk_LN)

    bad = 0
    for _ in range(200):
        listed, tried = costs(64), costs(160)
        bad += chosen(tried.risk_LN, bound(listed), 0.01) > 0
    assert bad / 200 <= 0.05 if bound is request_bounds else bad / 200 > 0.05, "or the bound of one threshold would have done"


def test_what_was_found_is_told() -> None:
    layers = torch.tensor([8.0, 7.0, 6.0, 5.0]).double()[:, None].expand(4, 200)
    costs = Costs(rows(0.0, 0.002, 0.02, 0.2), layers, layers)
    found = calibrate_thresholds(
        "softmax", costs, torch.zeros(4), (SAFE, 0.9, 0.5, 0.1), window=256, decay=4.0, tolerances=(0.01, 0.05)
    )
    assert [(each.tolerance, each.threshold, each.mean_layers) for each in found] == [(0.01, 0.9, 7.0), (0.05, 0.5, 6.0)]
    assert {(each.rule, each.certainty, each.num_texts, each.window, each.decay) for each in found} == {
        ("softmax", 0.95, 200, 256, 4.0)
    }
    assert found[0].mean_risk == pytest.approx(0.002, abs=1e-3)
    half = costs.of(torch.arange(100))
    assert half.risk_LN.shape == half.layers_LN.shape == (4, 100)
