"""How much of the KL that pruning costs training wins back, at once and gradually, and what pruning gains in speed.

``python benchmarks/pruning_recovery.py --data text.jsonl --out benchmarks/results/pruning_recovery.json``

The demo loses a quarter of its parameters three times: without recovery, at once with ``--minutes`` of recovery, and in
``--rounds`` rounds with the same minutes together. The KL from the unpruned model is on the held-out text that ships with hasten.
The share won back is 1 - KL after / KL before recovery. The seconds are those of the entire command; training has the minutes of
these.

For the speed, the unpruned and the pruned demo are grown by the same factors (``grow.py``): the unpruned one then costs as much as
a model of 0.6 billion parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from grow import Growth, grow
from hasten.bench.provenance import provenance
from hasten.checkpoints.hub import resolve
from hasten.compress.compressed_model import CompressedModel
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.run import run_pruning
from hasten.entrypoints.decode_speed import measure_speed
from hasten.entrypoints.evaluation import evaluate
from hasten.training.trainable_model import TrainableModel

BATCHES = (1, 8)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="text to recover on; the calibration text if left out")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, of each of the two ways")
    parser.add_argument("--rounds", type=int, default=4, help="of the gradual way")
    parser.add_argument("--share", type=float, default=0.75, help="of the parameters that stays")
    parser.add_argument("--parts", nargs="+", default=["heads", "neurons"])
    parser.add_argument("--method", default="activation")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--num-tokens", type=int, default=16_384, help="of held-out text")
    parser.add_argument("--growth", type=float, nargs=4, default=[4, 8, 3.5, 151_936], help="width, heads, layers, vocabulary")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = parse()
    result = provenance("pruning_recovery", sys.argv)
    parameters = sum(weight.numel() for weight in TrainableModel.load(resolve("demo", quiet=True)).decoder.parameters())
    one_shot = PruneOptions(
        method=options.method,
        parts=tuple(options.parts),
        target_params=int(options.share * parameters),
        seq_len=options.seq_len,
    )
    recovery: dict[str, Any] = {"recover_minutes": options.minutes, "recover_lr": options.lr, "recover_batch": options.batch}
    recovered = dataclasses.replace(one_shot, **recovery)
    ways = {"pruned": one_shot, "one_shot": recovered, "gradual": dataclasses.replace(recovered, steps=options.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        for name, way in ways.items():
            result[name] = measure_way(Path(folder, name), way, options)
            kl, before = result[name]["kl"], result["pruned"]["kl"]
            result[name]["share_won_back"] = None if name == "pruned" else 1 - kl / before
            print(f"{name}: {result[name]}")
        result["speed"] = {"unpruned": grown_speed(resolve("demo", quiet=True), Path(folder, "grown"), options.growth)}
        result["speed"]["pruned"] = grown_speed(Path(folder, "gradual"), Path(folder, "grown-pruned"), options.growth)
    print(f"speed: {result['speed']}")
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure_way(out: Path, way: PruneOptions, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one way to prune."""
    lines: list[str] = []
    pruned = run_pruning("demo", out, way, data=options.data if way.recovers else None, report=lines.append)
    assert isinstance(pruned, CompressedModel)
    quality = evaluate(str(out), {}, against="demo", num_tokens=options.num_tokens).quality
    return {
        "parameters": pruned.num_parameters,
        "unpruned_parameters": pruned.original_num_parameters,
        "kl": quality.kl_mean,
        "kl_interval": quality.kl_interval,
        "top1_agreement": quality.top1_agreement,
        "perplexity": quality.candidate_perplexity,
        "unpruned_perplexity": quality.reference_perplexity,
        "seconds": pruned.seconds,
        "report": lines,
    }


def grown_speed(source: Path, target: Path, growth: list[float]) -> dict[str, Any]:
    """Return the decode speed of a model grown by the factors, in tokens per second."""
    width, heads, layers, vocabulary = growth
    num_layers = json.loads((source / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    grow(source, target, Growth(int(width), int(heads), round(num_layers * layers), int(vocabulary)))
    return {f"batch_{batch}": measure_speed(str(target), {}, batch=batch).as_dict() for batch in BATCHES}


if __name__ == "__main__":
    main()
