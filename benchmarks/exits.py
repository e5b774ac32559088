"""The loss of early exit on unseen text, and whether calibrated thresholds keep their guarantee.

``python benchmarks/exits.py demo demo-exits --calibration --out exits_calibration.json --figure exits_calibration.svg``

Candidate thresholds come from some texts, which are not used again. On the other texts the exits run with every threshold, as
in the engine. Then, ``--draws`` times, thresholds are calibrated on a random half of the texts and tested on the other half. A
threshold breaks its guarantee if the loss exceeds the tolerance: on the other half, or on all texts, which represent the
population. The other half is the stricter test, because a half with few hard texts leaves them to the other one.

*oracle* is not a rule but a bound: every token exits where its KL divergence from the full model is lowest for the layers
saved.
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hasten
from exits_plot import draw_curves
from hasten.bench.provenance import provenance
from hasten.checkpoints.formats.exits import ExitsCheckpoint, read_exits
from hasten.checkpoints.hub import resolve
from hasten.core.early_exit import REQUEST_CRITERIA, TOKEN_CRITERIA
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.quality.documents import read_texts
from hasten.text.tokenizer import TextTokenizer
from hasten.training.early_exit.calibrate import exit_quality
from hasten.training.early_exit.exit_statistics import ExitStatistics, exit_statistics
from hasten.training.early_exit.risks import (
    isolated_risks,
    prompt_length,
    request_bounds,
    request_risks,
    threshold_grid,
    token_risks,
)
from hasten.training.early_exit.tables import prompt_table_cost, token_table_cost
from hasten.training.early_exit.thresholds import CERTAINTY, TOLERANCES, Costs, allowed_loss, select_threshold
from hasten.training.target_model import TargetModel

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
RULES = (*TOKEN_CRITERIA, *REQUEST_CRITERIA)
NUM_CANDIDATE_TEXTS = 64  # texts that provide the candidate thresholds
MIN_LOSS, MAX_LOSS = 0.0005, 0.15  # nats per token: range of the candidate thresholds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("exits")
    parser.add_argument("--calibration", action="store_true", help="measure risks, recalibrations and the curve")
    parser.add_argument("--data", type=Path, default=HELDOUT, help="text that neither the model nor the exits were trained on")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="only these rules")
    parser.add_argument("--texts", type=int, default=352, help="maximum number of texts")
    parser.add_argument("--window", type=int, default=256, help="tokens per text")
    parser.add_argument("--steps", type=int, default=16, help="candidate thresholds per rule")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


def load(options: argparse.Namespace) -> tuple[TargetModel, ExitsCheckpoint]:
    target = TargetModel.load(resolve(options.model))
    layer_context = LayerContext(target.ops, DenseFormatFactory(target.ops, torch.float32), torch.float32)
    spec = target.spec
    sizes = {"hidden_size": spec.hidden_size, "num_layers": spec.num_layers, "vocab_size": spec.vocab_size}
    return target, read_exits(resolve(options.exits), **sizes, layer_context=layer_context)


def windows(options: argparse.Namespace, target: TargetModel) -> Tensor:
    """Return the texts as windows of token ids, in random order, [N, W]."""
    tokenizer = TextTokenizer.load(target.folder, target.spec.vocab_size)
    assert tokenizer is not None, f"{target.folder} has no tokenizer"
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [token for text in read_texts(options.data) for token in [*tokenizer.encode(text, add_special_tokens=False), *end]]
    rows = torch.tensor(ids[: len(ids) // options.window * options.window]).view(-1, options.window)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: options.texts + NUM_CANDIDATE_TEXTS]]


def recalibrated(costs: Costs, largest_L: Tensor, tolerance: float, draws: int) -> dict[str, Any]:
    """Calibrate on random halves and test on the other halves and on all texts.

    ``largest_L``: loss on the candidate texts.
    """
    count, allowed = costs.risk_LN.shape[1], allowed_loss(tolerance)
    broken_half = broken = 0
    layers, risks, chosen = [], [], []
    for draw in range(draws):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(draw))
        calibration_half, other_half = costs.of(order[: count // 2]), costs.of(order[count // 2 :])
        index = select_threshold(calibration_half.risk_LN, largest_L, tolerance)
        broken_half += bool(other_half.risk_LN[index].mean() > allowed)
        broken += bool(costs.risk_LN[index].mean() > allowed)
        layers.append(float(other_half.layers_LN[index].mean()))
        risks.append(float(other_half.risk_LN[index].mean()))
        chosen.append(index)
    return {
        "tolerance": tolerance,
        "allowed_loss": allowed,
        "draws": draws,
        "texts_per_half": count // 2,
        "share_broken_on_all_texts": broken / draws,
        "share_broken_on_other_half": broken_half / draws,
        "promised_share": 1 - CERTAINTY,
        "mean_layers": sum(layers) / draws,
        "mean_loss": sum(risks) / draws,
        "thresholds": sorted(set(chosen)),
    }


def points(thresholds: tuple[float, ...], costs: Costs, nll: float) -> list[dict[str, float]]:
    """Return the curve of one rule: layers against perplexity and KL divergence."""
    return [
        {
            "threshold": threshold,
            "mean_layers": float(layers_N.mean()),
            "loss": float(risk_N.mean()),
            "deviation": float(risk_N.std()),
            "largest_loss": float(risk_N.max()),
            "perplexity": math.exp(nll + float(risk_N.mean())),
            "kl": float(kl_N.mean()),
        }
        for threshold, risk_N, layers_N, kl_N in zip(thresholds, costs.risk_LN, costs.layers_LN, costs.kl_LN, strict=True)
    ]


def rule_costs(
    target: TargetModel,
    checkpoint: ExitsCheckpoint,
    others_NW: Tensor,
    candidate_statistics: ExitStatistics,
    statistics: ExitStatistics,
    rule: str,
    steps: int,
) -> dict[str, Any]:
    """Return candidate thresholds, and the costs of these and the shipped thresholds on the other texts."""
    spec = checkpoint.exits.spec
    thresholds = threshold_grid(candidate_statistics, rule, steps=steps)
    shipped = tuple(calibration for calibration in checkpoint.calibrations if calibration.rule == rule)
    shipped_thresholds = tuple(calibration.threshold for calibration in shipped)
    if rule in REQUEST_CRITERIA:
        costs = request_risks(statistics, spec, rule, thresholds + shipped_thresholds)
        largest_L = request_bounds(request_risks(candidate_statistics, spec, rule, thresholds))
    else:
        expected_L = isolated_risks(candidate_statistics, rule, thresholds).mean(1)
        start, stop = (int((expected_L <= loss).long().cumprod(0).sum()) for loss in (MIN_LOSS, MAX_LOSS))
        thresholds = (thresholds[0], *thresholds[max(1, start - 1) : stop])
        costs = token_risks(target, checkpoint.exits, others_NW, rule, thresholds + shipped_thresholds)
        largest_L = isolated_risks(candidate_statistics, rule, thresholds).amax(1)
    count = len(thresholds)
    return {
        "thresholds": thresholds,
        "largest": largest_L,
        "costs": Costs(costs.risk_LN[:count], costs.layers_LN[:count], costs.kl_LN[:count]),
        "shipped": [
            {**dataclasses.asdict(calibration), "fresh_mean_layers": float(layers.mean()), "fresh_loss": float(risk.mean())}
            for calibration, risk, layers in zip(shipped, costs.risk_LN[count:], costs.layers_LN[count:], strict=True)
        ],
    }


def oracle(statistics: ExitStatistics, layers: tuple[int, ...], num_layers: int, tolerance: float) -> float:
    """Return the minimum layers per token within the tolerance, with the KL of every token known."""
    kl_RD = torch.cat((statistics.kl_NDT, torch.zeros_like(statistics.kl_NDT[:, :1])), dim=1).transpose(1, 2).flatten(0, 1).double()
    depth_D = torch.tensor([*layers, num_layers], dtype=torch.float64)
    low, high = 0.0, 1e6  # layers per nat
    for _ in range(60):
        price = (low * high) ** 0.5 if low else high * 1e-3
        choice_R = (depth_D + price * kl_RD).argmin(1)
        within_tolerance = float(kl_RD.gather(1, choice_R[:, None]).mean()) <= allowed_loss(tolerance)
        low, high = (low, price) if within_tolerance else (price, high)
    return float(depth_D[(depth_D + high * kl_RD).argmin(1)].mean())


def calibration(options: argparse.Namespace) -> dict[str, Any]:
    target, checkpoint = load(options)
    texts_NW = windows(options, target)
    others_NW, spec = texts_NW[NUM_CANDIDATE_TEXTS:], checkpoint.exits.spec
    candidate_statistics, statistics = (
        exit_statistics(target, checkpoint.exits, texts_NW[:NUM_CANDIDATE_TEXTS]),
        exit_statistics(target, checkpoint.exits, others_NW),
    )
    nll = {
        "tokens": float(statistics.nll_NT[:, 1:].mean()),
        "answers": float(statistics.nll_NT[:, prompt_length(statistics) - 1 :].mean()),
    }
    rules = {}
    for rule in options.rules:
        result = rule_costs(target, checkpoint, others_NW, candidate_statistics, statistics, rule, options.steps)
        costs, largest_L, thresholds = result.pop("costs"), result.pop("largest"), result.pop("thresholds")
        rules[rule] = {
            "points": points(thresholds, costs, nll["answers" if rule in REQUEST_CRITERIA else "tokens"]),
            "recalibrated": [recalibrated(costs, largest_L, tolerance, options.draws) for tolerance in TOLERANCES],
            **result,
        }
        show(rule, rules[rule], spec.num_layers)
    tables = {}
    if checkpoint.token_layers is not None:
        tables["token_table"] = token_table_cost(target, checkpoint.exits, others_NW, checkpoint.token_layers)
    if checkpoint.prompt_hash_table is not None:
        tables["prompt_hash"] = prompt_table_cost(target, checkpoint.exits, others_NW, statistics, checkpoint.prompt_hash_table)
    return {
        **provenance("exits", sys.argv),
        "options": {key: value for key, value in vars(options).items() if key not in ("out", "figure", "data")},
        "num_layers": spec.num_layers,
        "texts": len(others_NW),
        "perplexity": math.exp(nll["tokens"]),
        "exits": exit_quality(statistics, spec.layers),
        "rules": rules,
        "tables": {name: {"loss": loss, "mean_layers": layers} for name, (loss, layers) in tables.items()},
        "oracle": [
            {"tolerance": tolerance, "mean_layers": oracle(statistics, spec.layers, spec.num_layers, tolerance)}
            for tolerance in TOLERANCES
        ],
    }


def show(rule: str, result: dict[str, Any], num_layers: int) -> None:
    for row in result["recalibrated"]:
        broken = f"broken: {row['share_broken_on_all_texts']:.0%}, on the other half {row['share_broken_on_other_half']:.0%}"
        print(f"{rule} at {row['tolerance']:.1%}: {row['mean_layers']:.2f} of {num_layers} layers, {broken}", flush=True)


def main() -> None:
    options = parse()
    if not options.calibration:
        sys.exit("choose what to measure: --calibration")
    torch.set_num_threads(options.threads)
    result = calibration(options)
    if options.out:
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if options.figure:
        options.figure.write_text(draw_curves(result), encoding="utf-8")


if __name__ == "__main__":
    main()
