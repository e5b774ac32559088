"""From trained exits to a checkpoint that can be used: what the text says about when to leave, counted, searched and calibrated.

Tables are counted on text that was trained on; thresholds are listed there too. What either costs is measured on held-out text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hasten.checkpoints.formats.exits import ExitsCheckpoint
from hasten.core.early_exit import DECAY, REQUEST_CRITERIA, TOKEN_CRITERIA
from hasten.core.exit_calibration import Calibration
from hasten.layers.exits import Exits
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.early_exit.annotate import Annotations, annotate
from hasten.training.early_exit.risks import grid, isolated_risks, request_bounds, request_risks, token_risks
from hasten.training.early_exit.tables import Found, TextCounts, TokenCounts, budgets, largest, text_costs, token_costs
from hasten.training.early_exit.thresholds import TOLERANCES, allowed_loss, calibrate_thresholds
from hasten.training.options import TrainOptions
from hasten.training.target_model import TargetModel

TABLE_TOLERANCE = 0.01  # of perplexity, that the tables' budgets are searched for
# Thresholds are worth a test if they are expected to lose at least so much of the least that is ever allowed, and at most so many
# times the most.
WORTH = (0.1, 1.5)


@dataclasses.dataclass(frozen=True, slots=True)
class Material:
    """A frozen model with exits, and the text to decide on."""

    target: TargetModel
    exits: Exits
    trained_NW: Tensor  # windows of the text that was trained on
    held_out_NW: Tensor
    trained: Annotations  # of them
    held_out: Annotations


def calibrate(
    target: TargetModel,
    exits: Exits,
    corpus: Corpus,
    texts: int,
    options: TrainOptions,
    callback: TrainingCallback,
    stop: Callable[[], bool],
) -> tuple[ExitsCheckpoint, dict[str, Any]] | None:
    """The checkpoint, and for the report: every exit's quality, the calibrations and what the tables cost.

    None if ``stop``, which is asked before the tables and before each rule, asked to stop.
    """
    window, seed = options.seq_len, options.seed
    trained_NW = corpus.batch(0, min(texts, len(corpus.train_N) // window), window, seed).ids_BW
    held_out_NW = corpus.unread(window, texts, seed)
    callback.note(f"tables from {len(trained_NW)} windows, thresholds on {len(held_out_NW)} held-out ones")
    made = Material(
        target, exits, trained_NW, held_out_NW, annotate(target, exits, trained_NW), annotate(target, exits, held_out_NW)
    )
    if stop():
        return None
    tokens, in_buckets = _token_table(made), _text_table(made, seed)
    for name, found in (("tokens", tokens), ("texts", in_buckets)):
        callback.note(f"table of {name}: {found.mean_layers:.2f} layers, {found.risk:+.4f} nats per held-out token")
    calibrations: tuple[Calibration, ...] = ()
    for rule in (*TOKEN_CRITERIA, *REQUEST_CRITERIA):
        if stop():
            return None
        ours = thresholds(made, rule)
        calibrations += ours
        layers = ", ".join(f"{each.mean_layers:.2f} layers at {each.tolerance:.1%}" for each in ours)
        callback.note(f"{rule}: {layers}")
    assert isinstance(tokens.table, Tensor) and not isinstance(in_buckets.table, Tensor)
    report = {
        "exits": quality(made.held_out, exits.spec.layers),
        "calibrations": [dataclasses.asdict(each) for each in calibrations],
        "tables": {name: _about(found) for name, found in (("tokens", tokens), ("texts", in_buckets))},
    }
    return ExitsCheckpoint(exits, calibrations, tokens.table, in_buckets.table), report


def thresholds(made: Material, rule: str) -> tuple[Calibration, ...]:
    """One for each tolerance."""
    steps, spec = grid(made.trained, rule), made.exits.spec
    window = made.held_out_NW.shape[1]
    if rule in REQUEST_CRITERIA:
        expected, costs = (
            request_risks(found, spec.layers, spec.num_layers, rule, steps) for found in (made.trained, made.held_out)
        )
        return calibrate_thresholds(rule, costs, request_bounds(expected), steps, window=window, decay=None)
    steps = worth_testing(steps, isolated_risks(made.trained, rule, steps).mean(1))
    costs = token_risks(made.target, made.exits, made.held_out_NW, rule, steps)
    return calibrate_thresholds(rule, costs, isolated_risks(made.trained, rule, steps).amax(1), steps, window=window, decay=DECAY)


def worth_testing(steps: tuple[float, ...], expected_L: Tensor) -> tuple[float, ...]:
    """The first one, which costs nothing, and those from the last that is next to it to the first that is out of the question."""
    little, much = WORTH[0] * allowed_loss(min(TOLERANCES)), WORTH[1] * allowed_loss(max(TOLERANCES))
    begin = int((expected_L <= little).long().cumprod(0).sum())
    end = int((expected_L <= much).long().cumprod(0).sum())
    return (steps[0], *steps[max(1, begin - 1) : end + 1])


def quality(found: Annotations, layers: tuple[int, ...]) -> list[dict[str, float]]:
    """Of every exit, if all tokens left there: agreement, KL and loss in nats per token."""
    lost_NDT = found.exit_nll_NDT - found.nll_NT[:, None]
    return [
        {
            "layers": layer,
            "agreement": float(found.agrees_NDT[:, place].float().mean()),
            "kl": float(found.kl_NDT[:, place].mean()),
            "loss": float(lost_NDT[:, place].mean()),
        }
        for place, layer in enumerate(layers)
    ]


def _token_table(made: Material) -> Found:
    spec = made.exits.spec
    counts = TokenCounts.of(made.trained_NW[:, :-1], made.trained.kl_NDT, spec.vocab_size)

    def table(budget: float) -> Tensor:
        return counts.table(budget, spec.layers, spec.num_layers)

    def cost(budget: float) -> tuple[float, float]:
        return token_costs(made.target, made.exits, made.held_out_NW, table(budget))

    budget, risk, layers = largest(budgets(counts.kl_VD[counts.seen_V]), cost, TABLE_TOLERANCE)
    return Found(table(budget), budget, risk, layers)


def _text_table(made: Material, seed: int) -> Found:
    spec = made.exits.spec
    counts = TextCounts.of(made.target, made.trained_NW, made.trained, seed)

    def cost(budget: float) -> tuple[float, float]:
        table = counts.table(budget, spec.layers, spec.num_layers)
        return text_costs(made.target, made.exits, made.held_out_NW, made.held_out, table)

    budget, risk, layers = largest(budgets(counts.kl_BD), cost, TABLE_TOLERANCE)
    return Found(counts.table(budget, spec.layers, spec.num_layers), budget, risk, layers)


def _about(found: Found) -> dict[str, float]:
    return {"tolerance": TABLE_TOLERANCE, "budget": found.budget, "risk": found.risk, "mean_layers": found.mean_layers}
