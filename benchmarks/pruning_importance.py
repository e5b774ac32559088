"""KL divergence of a model pruned by each importance, beside random choice, before any recovery.

``python benchmarks/pruning_importance.py demo --out pruning-importance.json --table pruning-importance.md``

A quarter of the heads, neurons, channels or layers is removed. A model of two key/value heads per layer cannot lose a quarter of
them: it loses half. The quarter of the heads is measured on the same function with one key/value head per query head, whose keys
and values are repeated. Half of the heads are also removed as one query head of each two in a group. KL is on the held-out text
that ships with hasten, against the unpruned model in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.bench.provenance import provenance
from hasten.checkpoints.hub import resolve
from hasten.compress.prune.options import HEADS, LAYER_SCORES, LAYERS, NEURONS, PARTS, STRUCTURED, WIDTH, PruneOptions
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.structured import prune_model
from hasten.compress.prune.target_shape import shape_for_ratio
from hasten.compress.quantize.calibration import calibration_ids
from hasten.quality.divergence import divergence
from hasten.quality.documents import HELD_OUT
from hasten.text.tokenizer import TextTokenizer
from hasten.training.trainable_model import TrainableModel

RATIO = 0.25
GOAL = 0.7  # KL of a method, divided by the mean KL of random choice
RANDOM = "random"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=5, help="of random choice")
    parser.add_argument("--samples", type=int, default=128, help="calibration sequences")
    parser.add_argument("--windows", type=int, default=32, help="held-out sequences")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="also write the rows as a Markdown table")
    return parser.parse_args()


def main() -> None:
    options = parse()
    folder = resolve(options.model)
    model = TrainableModel.load(folder)
    tokenizer = TextTokenizer.load(folder, model.spec.vocab_size)
    lengths = {"seq_len": options.seq_len, "seed": 0, "max_positions": model.spec.max_positions}
    calibration = calibration_ids(None, tokenizer, samples=options.samples, **lengths)
    held_out = calibration_ids(HELD_OUT, tokenizer, samples=options.windows, **lengths)
    rows = []
    for case, variant, target in cases(model):
        rows += measure_case(case, variant, target, calibration, kl_from(model, held_out), options.seeds)
    settings = {name: getattr(options, name) for name in ("model", "seeds", "samples", "windows", "seq_len")}
    result = {**provenance("pruning importance", sys.argv), **settings, "goal": GOAL, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.table is not None:
        options.table.write_text(table(rows), encoding="utf-8")


def cases(model: TrainableModel) -> Iterator[tuple[str, TrainableModel, Shape]]:
    """Yield (name, model, target)."""
    shape = Shape.of(model.spec)
    repeated = repeat_kv_heads(model)
    yield "25% of heads, keys and values repeated", repeated, shape_for_ratio(repeated.spec, (HEADS,), RATIO)
    if shape.num_kv_heads > 1:
        yield "50% of heads, by groups", model, shape_for_ratio(model.spec, (HEADS,), 0.5)
    if shape.num_heads > shape.num_kv_heads:
        yield "50% of heads, within groups", model, dataclasses.replace(shape, num_heads=shape.num_heads // 2)
    for part in (NEURONS, WIDTH, LAYERS):
        yield f"25% of {part}", model, shape_for_ratio(model.spec, (part,), RATIO)


@torch.no_grad()
def repeat_kv_heads(model: TrainableModel) -> TrainableModel:
    """Return the same function with a key/value head for each query head."""
    attention = model.spec.layers[0].attention
    group_size = attention.num_heads // attention.num_kv_heads
    repeated = TrainableModel.new({**model.config, "num_key_value_heads": attention.num_heads}, seed=0)
    sizes = [attention.q_size, attention.kv_size, attention.kv_size]
    for (name, target), source in zip(repeated.decoder.named_parameters(), model.decoder.parameters(), strict=True):
        weights: Tensor = source
        if ".attention.qkv." in name:
            queries, *others = torch.split(source, sizes)
            heads = [rows.view(-1, attention.head_dim, *rows.shape[1:]) for rows in others]
            weights = torch.cat([queries, *(head.repeat_interleave(group_size, 0).flatten(0, 1) for head in heads)])
        target.copy_(weights)
    return repeated


def measure_case(
    case: str, model: TrainableModel, target: Shape, calibration: Tensor, kl: Callable[[TrainableModel], float], num_seeds: int
) -> list[dict[str, Any]]:
    def measure(method: str, **others: Any) -> float:
        return kl(prune_model(model, target, calibration, PruneOptions(method=method, ratio=RATIO, parts=PARTS, **others)))

    of_random = [measure(RANDOM, seed=seed) for seed in range(num_seeds)]
    mean = statistics.mean(of_random)
    if target.num_layers < model.spec.num_layers:
        found = {score: measure("activation", layer_score=score) for score in LAYER_SCORES}
    else:
        found = {method: measure(method) for method in STRUCTURED if method != RANDOM}
    removed = 1 - num_parameters(target.apply(model.spec)) / num_parameters(model.spec)
    rows = [{"case": case, "method": RANDOM, "kl": mean, "seeds": of_random, "removed_parameters": removed}]
    for method, value in found.items():
        rows.append({"case": case, "method": method, "kl": value, "ratio": value / mean, "removed_parameters": removed})
        print(f"{case}, {method}: KL {value:.4f}, {value / mean:.2f} of random choice", file=sys.stderr)
    return rows


def kl_from(reference: TrainableModel, ids_BS: Tensor) -> Callable[[TrainableModel], float]:
    """Return a function from a model to its mean KL(reference || model), in nats."""
    expected = [logits(reference, ids_1S) for ids_1S in torch.split(ids_BS, 1)]

    def kl(model: TrainableModel) -> float:
        pairs = zip(expected, torch.split(ids_BS, 1), strict=True)
        found = [divergence(logits_RV, logits(model, ids_1S), ids_1S[0, 1:]).kl_R for logits_RV, ids_1S in pairs]
        return float(torch.cat(found).mean())

    return kl


@torch.no_grad()
def logits(model: TrainableModel, ids_1S: Tensor) -> Tensor:
    return model.decoder.head(model.hidden_states(ids_1S).last_TE[:-1])


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| removed | method | KL (nats) | of random choice |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else f"{min(row['seeds']):.3f} to {max(row['seeds']):.3f}"
        lines.append(f"| {row['case']} | {row['method']} | {row['kl']:.3f} | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
