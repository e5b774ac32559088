"""What leaving early costs, and whether calibrated thresholds keep their promise, on text that neither model nor exits have seen.

``python benchmarks/exits.py demo demo-exits --calibration --out exits_calibration.json --figure exits_calibration.svg``

Thresholds are listed on some texts and never judged by those. On all others the exits are run for every threshold, as the engine
runs them. Then, ``--draws`` times, thresholds are calibrated on a random half and tried on the other one. A promise is broken where
texts lose more than is allowed: the other half, and all texts together, which stand for what the half was drawn from. What a lucky
half lacks in hard texts is in the other one, which therefore is the harsher judge.

*oracle* is no rule but a bound: tokens leave where their true divergence from the whole model, known only by running all of it, is
lowest for the layers that this saves.
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
from exits_picture import curve
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
LISTED = 64  # texts that thresholds are listed on
CHEAPEST, DEAREST = 0.0005, 0.15  # nats per token, between which thresholds are tried


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("exits")
    parser.add_argument("--calibration", action="store_true", help="risks, recalibrations and the curve; no times")
    parser.add_argument("--data", type=Path, default=HELDOUT, help="text that neither the model nor the exits were trained on")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="these alone")
    parser.add_argument("--texts", type=int, default=352, help="windows, at most")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    parser.add_argument("--steps", type=int, default=16, help="thresholds of a rule")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


def load(options: argparse.Namespace) -> tuple[TargetModel, ExitsCheckpoint]:
    target = TargetModel.load(resolve(options.model))
    build = LayerContext(target.ops, DenseFormatFactory(target.ops, torch.float32), torch.float32)
    spec = target.spec
    sizes = {"hidden_size": spec.hidden_size, "num_layers": spec.num_layers, "vocab_size": spec.vocab_size}
    return target, read_exits(resolve(options.exits), **sizes, layer_context=build)


def windows(options: argparse.Namespace, target: TargetModel) -> Tensor:
    """In random order. [N, W]"""
    tokenizer = TextTokenizer.load(target.folder, target.spec.vocab_size)
    assert tokenizer is not None, f"{target.folder} has no tokenizer"
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [token for text in read_texts(options.data) for token in [*tokenizer.encode(text, add_special_tokens=False), *end]]
    rows = torch.tensor(ids[: len(ids) // options.window * options.window]).view(-1, options.window)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: options.texts + LISTED]]


def recalibrated(costs: Costs, largest_L: Tensor, tolerance: float, draws: int) -> dict[str, Any]:
    """Thresholds from halves, tried on the other halves and on everything. ``largest_L``: losses on the texts of the list."""
    count, allowed = costs.risk_LN.shape[1], allowed_loss(tolerance)
    broken_half = broken = 0
    layers, risks, places = [], [], []
    for draw in range(draws):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(draw))
        ours, others = costs.of(order[: count // 2]), costs.of(order[count // 2 :])
        place = select_threshold(ours.risk_LN, largest_L, tolerance)
        broken_half += bool(others.risk_LN[place].mean() > allowed)
        broken += bool(costs.risk_LN[place].mean() > allowed)
        layers.append(float(others.layers_LN[place].mean()))
        risks.append(float(others.risk_LN[place].mean()))
        places.append(place)
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
        "thresholds": sorted(set(places)),
    }


def points(thresholds: tuple[float, ...], costs: Costs, nll: float) -> list[dict[str, float]]:
    """The curve of one rule: layers against perplexity and KL."""
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
    made: ExitsCheckpoint,
    others_NW: Tensor,
    listed: ExitStatistics,
    found: ExitStatistics,
    rule: str,
    steps: int,
) -> dict[str, Any]:
    """Thresholds by ``listed`` texts, and what they and the shipped ones cost on the others, which ``found`` is about."""
    spec = made.exits.spec
    thresholds = threshold_grid(listed, rule, steps=steps)
    shipped = tuple(each for each in made.calibrations if each.rule == rule)
    asked = tuple(each.threshold for each in shipped)
    if rule in REQUEST_CRITERIA:
        costs = request_risks(found, spec, rule, thresholds + asked)
        largest_L = request_bounds(request_risks(listed, spec, rule, thresholds))
    else:
        expected_L = isolated_risks(listed, rule, thresholds).mean(1)
        begin, end = (int((expected_L <= loss).long().cumprod(0).sum()) for loss in (CHEAPEST, DEAREST))
        thresholds = (thresholds[0], *thresholds[max(1, begin - 1) : end])
        costs = token_risks(target, made.exits, others_NW, rule, thresholds + asked)
        largest_L = isolated_risks(listed, rule, thresholds).amax(1)
    count = len(thresholds)
    return {
        "thresholds": thresholds,
        "largest": largest_L,
        "costs": Costs(costs.risk_LN[:count], costs.layers_LN[:count], costs.kl_LN[:count]),
        "shipped": [
            {**dataclasses.asdict(each), "fresh_mean_layers": float(layers.mean()), "fresh_loss": float(risk.mean())}
            for each, risk, layers in zip(shipped, costs.risk_LN[count:], costs.layers_LN[count:], strict=True)
        ],
    }


def oracle(found: ExitStatistics, layers: tuple[int, ...], num_layers: int, tolerance: float) -> float:
    """The fewest layers per token at which the mean KL is within what is allowed, if every token's KL at every exit were known."""
    kl_RD = torch.cat((found.kl_NDT, torch.zeros_like(found.kl_NDT[:, :1])), dim=1).transpose(1, 2).flatten(0, 1).double()
    depth_D = torch.tensor([*layers, num_layers], dtype=torch.float64)
    low, high = 0.0, 1e6  # layers per nat
    for _ in range(60):
        price = (low * high) ** 0.5 if low else high * 1e-3
        place_R = (depth_D + price * kl_RD).argmin(1)
        enough = float(kl_RD.gather(1, place_R[:, None]).mean()) <= allowed_loss(tolerance)
        low, high = (low, price) if enough else (price, high)
    return float(depth_D[(depth_D + high * kl_RD).argmin(1)].mean())


def calibration(options: argparse.Namespace) -> dict[str, Any]:
    target, made = load(options)
    texts_NW = windows(options, target)
    others_NW, spec = texts_NW[LISTED:], made.exits.spec
    listed, found = exit_statistics(target, made.exits, texts_NW[:LISTED]), exit_statistics(target, made.exits, others_NW)
    nll = {"tokens": float(found.nll_NT[:, 1:].mean()), "answers": float(found.nll_NT[:, prompt_length(found) - 1 :].mean())}
    rules = {}
    for rule in options.rules:
        result = rule_costs(target, made, others_NW, listed, found, rule, options.steps)
        costs, largest_L, thresholds = result.pop("costs"), result.pop("largest"), result.pop("thresholds")
        rules[rule] = {
            "points": points(thresholds, costs, nll["answers" if rule in REQUEST_CRITERIA else "tokens"]),
            "recalibrated": [recalibrated(costs, largest_L, tolerance, options.draws) for tolerance in TOLERANCES],
            **result,
        }
        show(rule, rules[rule], spec.num_layers)
    known = {}
    if made.token_layers is not None:
        known["token_table"] = token_table_cost(target, made.exits, others_NW, made.token_layers)
    if made.prompt_hash_table is not None:
        known["prompt_hash"] = prompt_table_cost(target, made.exits, others_NW, found, made.prompt_hash_table)
    return {
        **provenance("exits", sys.argv),
        "options": {key: value for key, value in vars(options).items() if key not in ("out", "figure", "data")},
        "num_layers": spec.num_layers,
        "texts": len(others_NW),
        "perplexity": math.exp(nll["tokens"]),
        "exits": exit_quality(found, spec.layers),
        "rules": rules,
        "tables": {name: {"loss": loss, "mean_layers": layers} for name, (loss, layers) in known.items()},
        "oracle": [{"tolerance": each, "mean_layers": oracle(found, spec.layers, spec.num_layers, each)} for each in TOLERANCES],
    }


def show(rule: str, result: dict[str, Any], num_layers: int) -> None:
    for each in result["recalibrated"]:
        broken = f"broken: {each['share_broken_on_all_texts']:.0%}, on the other half {each['share_broken_on_other_half']:.0%}"
        print(f"{rule} at {each['tolerance']:.1%}: {each['mean_layers']:.2f} of {num_layers} layers, {broken}", flush=True)


def main() -> None:
    options = parse()
    if not options.calibration:
        sys.exit("say what to measure: --calibration")
    torch.set_num_threads(options.threads)
    result = calibration(options)
    if options.out:
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if options.figure:
        options.figure.write_text(curve(result), encoding="utf-8")


if __name__ == "__main__":
    main()
