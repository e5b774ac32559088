"""The speed-up and the loss of early exit: calibrated rules and fixed exit layers.

``python benchmarks/grow.py demo grown/wide --width 8 --layers 1 --vocabulary 75968`` makes a model of half a billion parameters
without idle layers. ``python benchmarks/grow_heads.py demo-exits grown/exits --grown grown/wide`` makes its exits.
``python benchmarks/exit_speed.py grown/wide grown/exits --out exit_speed.json``

Requests generate ``--tokens`` tokens after prompts that neither model nor exits were trained on. Every turn runs all settings
on the same prompts, starting with another setting each time; the first turn is a warm-up. Quality is the mean loss on the
held-out text of the calibration (nats per token, teacher-forced; ``benchmarks/exits.py`` has the curve on unseen text). The
second measure of quality is the share of output tokens before the first that differs from plain decoding.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import hasten
from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from hasten.bench.report import spread
from speculation import last_first_token

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
PLAIN = "all layers"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("exits")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--layers", type=int, nargs="+", default=[7, 6], help="fixed exit layers")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each output")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def settings(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    config = json.loads((Path(options.exits) / "config.json").read_text(encoding="utf-8"))
    result: dict[str, dict[str, Any]] = {PLAIN: {}}
    result |= {f"layer {layer}": {"exit_rule": "fixed", "exit_layer": layer} for layer in options.layers}
    for calibration in config["calibrations"]:
        if calibration["tolerance"] in options.tolerances:
            rule, tolerance = calibration["rule"], calibration["tolerance"]
            result[f"{rule} {tolerance:.1%}"] = {"exit_rule": rule, "exit_tolerance": tolerance, "calibration": calibration}
    return result | {rule: {"exit_rule": rule} for rule in ("token_table", "prompt_hash")}


def prompts(llm: LLM, count: int, length: int, turn: int) -> list[dict[str, list[int]]]:
    rng = random.Random(f"{turn}/{count}")
    with HELDOUT.open(encoding="utf-8") as lines:
        ids = [llm.tokenizer.encode(json.loads(line)["text"]) for line in lines]
    ids = [text for text in ids if len(text) > 2 * length]
    result = []
    for _ in range(count):
        text = rng.choice(ids)
        start = rng.randrange(len(text) - length)
        result.append({"prompt_token_ids": text[start : start + length]})
    return result


def run(llm: LLM, batch: list[dict[str, list[int]]], tokens: int, exits: dict[str, Any]) -> dict[str, Any]:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, **exits)
    start = time.perf_counter()
    outputs = llm.generate(batch, params, use_tqdm=False)
    seconds = time.perf_counter() - start - last_first_token(outputs)
    layers = [layer for output in outputs for layer in output.outputs[0].exit_layers]
    return {
        "tokens": [output.outputs[0].token_ids for output in outputs],
        "seconds": seconds,
        "layers": sum(layers) / len(layers) if layers else None,
    }


def matching_share(outputs: list[tuple[int, ...]], references: list[tuple[int, ...]]) -> float:
    """Return the share of tokens before the first that differs."""
    lengths = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
        for x, y in zip(outputs, references, strict=True)
    ]
    return sum(lengths) / sum(map(len, references))


def measure(options: argparse.Namespace, llm: LLM, batch: int) -> list[dict[str, Any]]:
    rules = settings(options)
    names, turns = list(rules), []
    for turn in range(-1, options.turns):
        batch_prompts = prompts(llm, batch, options.prompt, turn)
        first = turn % len(names)
        measured = {}
        for name in names[first:] + names[:first]:
            llm.reset_prefix_cache()
            exits = {key: value for key, value in rules[name].items() if key != "calibration"}
            measured[name] = run(llm, batch_prompts, options.tokens, exits)
        for name in names:
            measured[name]["same"] = matching_share(measured[name]["tokens"], measured[PLAIN]["tokens"])
        if turn >= 0:
            turns.append(measured)
    return rows_of(options, batch, rules, turns)


def rows_of(
    options: argparse.Namespace, batch: int, rules: dict[str, dict[str, Any]], turns: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    for name in rules:
        calibration = rules[name].get("calibration")
        layers = [turn[name]["layers"] for turn in turns if turn[name]["layers"] is not None]
        steps = options.tokens - 1
        rows.append(
            {
                "rule": name,
                "batch": batch,
                "milliseconds_per_step": spread([1e3 * turn[name]["seconds"] / steps for turn in turns]),
                "speed_up": spread([turn[PLAIN]["seconds"] / turn[name]["seconds"] for turn in turns]),
                "mean_layers": sum(layers) / len(layers) if layers else None,
                "same_as_plain": sum(turn[name]["same"] for turn in turns) / len(turns),
                "calibrated": calibration,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        known = row["calibrated"]
        cost = "" if known is None else f", perplexity {math.expm1(known['mean_risk']):+.2%}"
        layers = "" if row["mean_layers"] is None else f", {row['mean_layers']:.2f} layers"
        up = row["speed_up"]
        print(
            f"batch {row['batch']}, {row['rule']}: {up['median']:.2f}x ({up['min']:.2f} to {up['max']:.2f}){layers}{cost}, "
            f"{row['same_as_plain']:.0%} as plain",
            flush=True,
        )


def main() -> None:
    options = parse()
    limits: dict[str, Any] = {"threads": options.threads, "kv_cache_memory": "512MiB", "max_model_len": 512}
    llm = LLM(options.model, exits=options.exits, quantization=options.quantization, speculative_method="off", **limits)
    rows: list[dict[str, Any]] = []
    for batch in options.batches:
        batch_rows = measure(options, llm, batch)
        show(batch_rows)
        rows += batch_rows
    result = {
        **provenance("exit_speed", sys.argv),
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items() if key != "out"},
        "num_layers": json.loads((Path(options.model) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"],
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
