"""``calibrate``: exit tables and calibrated thresholds for trained exit heads.

Tables and threshold grids come from training text. Their cost is measured on validation text.

Shape suffixes: N sequences · S tokens per sequence · T positions · D exits · L thresholds · V vocabulary · X buckets · P planes ·
E hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hasten.checkpoints.formats.exits import ExitsCheckpoint
from hasten.core.early_exit import DECAY, REQUEST_CRITERIA, TOKEN_CRITERIA, ExitCalibration
from hasten.layers.early_exit import ExitHeads, PromptHashTable
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.early_exit.exit_statistics import ExitStatistics, exit_statistics
from hasten.training.early_exit.risks import isolated_risks, request_bounds, request_risks, threshold_grid, token_risks
from hasten.training.early_exit.tables import bucket_kl, calibrate_table, prompt_table_cost, token_kl, token_table_cost
from hasten.training.early_exit.thresholds import TOLERANCES, allowed_loss, calibrate_thresholds
from hasten.training.options import TrainOptions
from hasten.training.target_model import TargetModel

TABLE_TOLERANCE = 0.01  # of perplexity, for the budgets of tables
# Expected loss of the thresholds that are tested, relative to the smallest and to the largest allowed loss.
CANDIDATE_RANGE = (0.1, 1.5)


def calibrate(
    target: TargetModel,
    exits: ExitHeads,
    corpus: Corpus,
    num_sequences: int,
    options: TrainOptions,
    callback: TrainingCallback,
    should_stop: Callable[[], bool],
) -> tuple[ExitsCheckpoint, dict[str, Any]] | None:
    """Return the checkpoint and the report entries of ``training.json``.

    None if ``should_stop``, called before the tables and before each rule, returned True.
    """
    seq_len, seed, spec = options.seq_len, options.seed, exits.spec
    train_NS = corpus.batch(0, min(num_sequences, len(corpus.train_N) // seq_len), seq_len, seed).ids_BS
    validation_NS = corpus.calibration_sequences(seq_len, num_sequences, seed)
    callback.on_log(f"calibrating on {len(train_NS)} training sequences and {len(validation_NS)} validation sequences")
    train, validation = (exit_statistics(target, exits, ids_NS) for ids_NS in (train_NS, validation_NS))
    if should_stop():
        return None
    token_table = calibrate_table(
        token_kl(train_NS[:, :-1], train.kl_NDT, spec.vocab_size),
        spec,
        lambda layers_V: token_table_cost(target, exits, validation_NS, layers_V),
        TABLE_TOLERANCE,
    )
    planes_PE, kl_XD = bucket_kl(target, train_NS, train, seed)
    prompt_table = calibrate_table(
        kl_XD,
        spec,
        lambda layers_X: prompt_table_cost(target, exits, validation_NS, validation, PromptHashTable(planes_PE, layers_X)),
        TABLE_TOLERANCE,
    )
    tables = {}
    for rule, name, table in (("token_table", "tokens", token_table), ("prompt_hash", "texts", prompt_table)):
        callback.on_log(f"{rule}: {table.mean_layers:.2f} layers, {table.risk:+.4f} nats per validation token")
        costs = {"budget": table.budget, "risk": table.risk, "mean_layers": table.mean_layers}
        tables[name] = {"tolerance": TABLE_TOLERANCE, **costs}
    calibrations: tuple[ExitCalibration, ...] = ()
    for rule in (*TOKEN_CRITERIA, *REQUEST_CRITERIA):
        if should_stop():
            return None
        of_rule = calibrate_rule(target, exits, rule, train, validation_NS, validation)
        calibrations += of_rule
        layers = ", ".join(f"{each.mean_layers:.2f} layers at {each.tolerance:.1%}" for each in of_rule)
        callback.on_log(f"{rule}: {layers}")
    report = {
        "exits": exit_quality(validation, spec.layers),
        "calibrations": [dataclasses.asdict(each) for each in calibrations],
        "tables": tables,
    }
    prompt_hash_table = PromptHashTable(planes_PE, prompt_table.layers_X)
    return ExitsCheckpoint(exits, calibrations, token_table.layers_X, prompt_hash_table), report


def calibrate_rule(
    target: TargetModel, exits: ExitHeads, rule: str, train: ExitStatistics, validation_NS: Tensor, validation: ExitStatistics
) -> tuple[ExitCalibration, ...]:
    """Return one calibration per tolerance, of thresholds from ``train`` tested on validation sequences."""
    thresholds, seq_len = threshold_grid(train, rule), validation_NS.shape[1]
    if rule in REQUEST_CRITERIA:
        bounds_L = request_bounds(request_risks(train, exits.spec, rule, thresholds))
        costs = request_risks(validation, exits.spec, rule, thresholds)
        return calibrate_thresholds(rule, costs, bounds_L, thresholds, seq_len=seq_len, decay=None)
    thresholds = candidate_thresholds(thresholds, isolated_risks(train, rule, thresholds).mean(1))
    costs = token_risks(target, exits, validation_NS, rule, thresholds)
    largest_L = isolated_risks(train, rule, thresholds).amax(1)
    return calibrate_thresholds(rule, costs, largest_L, thresholds, seq_len=seq_len, decay=DECAY)


def candidate_thresholds(thresholds: tuple[float, ...], expected_loss_L: Tensor) -> tuple[float, ...]:
    """Return the first threshold, those with an expected loss in ``CANDIDATE_RANGE``, and neighbours."""
    low, high = CANDIDATE_RANGE[0] * allowed_loss(min(TOLERANCES)), CANDIDATE_RANGE[1] * allowed_loss(max(TOLERANCES))
    begin, end = (int((expected_loss_L <= limit).long().cumprod(0).sum()) for limit in (low, high))
    return (thresholds[0], *thresholds[max(1, begin - 1) : end + 1])


def exit_quality(statistics: ExitStatistics, layers: tuple[int, ...]) -> list[dict[str, float]]:
    """Return agreement, KL and loss in nats per token of every exit, if all tokens exited there."""
    loss_NDT = statistics.exit_nll_NDT - statistics.nll_NT[:, None]
    return [
        {
            "layers": layer,
            "agreement": float(statistics.agrees_NDT[:, index].float().mean()),
            "kl": float(statistics.kl_NDT[:, index].mean()),
            "loss": float(loss_NDT[:, index].mean()),
        }
        for index, layer in enumerate(layers)
    ]
