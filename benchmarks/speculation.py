"""The speed-up of speculative decoding on real text: every drafter, and ``auto``.

``python benchmarks/grow.py demo grown/demo && python benchmarks/grow.py demo-draft grown/draft``
``python benchmarks/grow_heads.py demo-eagle grown/eagle --grown grown/demo``, and likewise other heads
``python benchmarks/speculation.py grown/demo --draft-model grown/draft --heads grown/eagle --out speculation.json``

There are three workloads of text that the model was not trained on: code, documentation, and *repeat*. The prompt of *repeat* is a
piece of code followed by its own beginning, so that the output mostly repeats the prompt, as an edit does. Every turn runs all
engines on the same prompts, starting with another engine each time; the first turn of each workload is a warm-up. Outputs are
compared: a drafter that changes one token ends the run. Intervals are 95 % percentile bootstraps of the mean over turns.

Two times are measured per batch. ``seconds`` runs until the last request ends: the time of a list of prompts as long as the batch.
Requests with more accepted drafts end earlier and leave a smaller batch. ``tpot`` is the mean time per output token of a request:
the latency that users see, and the gain of a server with a full queue.
"""

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import hasten
from hasten import LLM, RequestOutput, SamplingParams
from hasten.bench.provenance import provenance
from hasten.bench.report import spread

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
WORKLOADS = ("code", "docs", "repeat")
PLAIN, AUTO = "off", "auto"
NUM_RESAMPLES = 10_000
MAX_MODEL_LEN = 512
MIB_PER_SEQUENCE = 80  # KV cache of MAX_MODEL_LEN tokens, for a model of 0.5e9 parameters and its draft model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft-model", help="the drafter draft_model is measured only with it")
    parser.add_argument("--heads", nargs="*", default=[], help="folders of Medusa heads and EAGLE-3 heads; auto uses the last one")
    parser.add_argument("--exits", help="trained exits, for self-speculation")
    parser.add_argument("--self-draft-layers", type=int, help="first layers that draft")
    parser.add_argument("--only", nargs="+", help="these engines, besides plain decoding")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each output")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of each prompt")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantization", default="int8", help="none: the checkpoint's dtype")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def read_texts(kind: str) -> list[str]:
    with HELDOUT.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if row["kind"] == ("docs" if kind == "docs" else "code")]


def prompts(llm: LLM, workload: str, count: int, length: int, turn: int) -> list[list[int]]:
    rng = random.Random(f"{workload}/{turn}/{count}")
    ids = [llm.tokenizer.encode(text) for text in read_texts(workload)]
    ids = [text for text in ids if len(text) > 2 * length]
    result = []
    for _ in range(count):
        text = rng.choice(ids)
        start = rng.randrange(len(text) - length)
        prompt = text[start : start + length]
        result.append(prompt + prompt[: length // 4] if workload == "repeat" else prompt)
    return result


def last_first_token(outputs: list[RequestOutput]) -> float:
    """Return the seconds until every request has its first token."""
    ttfts = [output.metrics.ttft for output in outputs if output.metrics.ttft is not None]
    assert len(ttfts) == len(outputs), "a request without a token"
    return max(ttfts)


def seconds_per_token(outputs: list[RequestOutput]) -> float:
    """Return the mean over requests, without their first tokens."""
    rates = [output.metrics.tokens_per_second for output in outputs if output.metrics.tokens_per_second]
    assert len(rates) == len(outputs), "a request of one token"
    return statistics.fmean(1 / rate for rate in rates)


def run(llm: LLM, batch: list[list[int]], tokens: int, temperature: float) -> dict[str, Any]:
    """Measure one batch.

    ``seconds`` starts at the last first token, since speculation cannot speed up the prefill.
    """
    params = [SamplingParams(temperature=temperature, seed=i, max_tokens=tokens, ignore_eos=True) for i in range(len(batch))]
    before, start = dataclasses.replace(llm.engine.stats), time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in batch], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    stats = llm.engine.stats
    return {
        "tokens": [output.outputs[0].token_ids for output in outputs],
        "seconds": seconds - last_first_token(outputs),
        "tpot": seconds_per_token(outputs),
        "steps": stats.num_steps - before.num_steps,
        "drafts": stats.num_drafts - before.num_drafts,
        "drafted": stats.num_drafted_tokens - before.num_drafted_tokens,
        "accepted": stats.num_accepted_tokens - before.num_accepted_tokens,
    }


def engines(options: argparse.Namespace) -> dict[str, LLM]:
    drafters: dict[str, dict[str, Any]] = {PLAIN: {}, "prompt_lookup": {}, "suffix": {}}
    auto_options: dict[str, Any] = {}
    if options.draft_model:
        auto_options["draft_model"] = options.draft_model
        drafters["draft_model"] = {"draft_model": options.draft_model}
    for folder in options.heads:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        drafters["eagle" if "speculators_model_type" in config else "medusa"] = {"draft_heads": folder}
        auto_options["draft_heads"] = folder
    if options.exits:
        exit_options = {"exits": options.exits, "self_draft_layers": options.self_draft_layers}
        auto_options |= exit_options
        drafters["self_speculation"] = exit_options
    drafters[AUTO] = auto_options
    # All prompts of a batch fit one step and all sequences fit the KV cache, so no request waits for another.
    prompt_tokens = max(options.batches) * (options.prompt + options.prompt // 4)
    memory = f"{max(options.batches) * MIB_PER_SEQUENCE}MiB"
    limits = {"kv_cache_memory": memory, "max_model_len": MAX_MODEL_LEN, "max_num_batched_tokens": max(prompt_tokens, 2048)}
    common: dict[str, Any] = {"threads": options.threads, **limits}
    quantization = None if options.quantization == "none" else options.quantization
    selected = drafters if options.only is None else [PLAIN, *options.only]
    return {
        name: LLM(options.model, quantization=quantization, speculative_method=name, **common, **drafters[name])
        for name in selected
    }


def touch(llm: LLM, options: argparse.Namespace) -> None:
    """Write to the entire KV cache once: a server pays for fresh memory pages only at its start."""
    for turn in range(1 + MAX_MODEL_LEN // options.prompt):
        run(llm, prompts(llm, "code", max(options.batches), options.prompt, -1000 - turn), 4, options.temperature)


def measure(options: argparse.Namespace, llms: dict[str, LLM], batch: int) -> list[dict[str, Any]]:
    """Return one entry per turn: the workload, and the measurements of each engine."""
    turns = []
    names = list(llms)
    for turn in range(-len(WORKLOADS), options.turns):
        workload = WORKLOADS[turn % len(WORKLOADS)]
        batch_prompts = prompts(llms[PLAIN], workload, batch, options.prompt, turn)
        first = turn % len(names)
        measured = {
            name: run(llms[name], batch_prompts, options.tokens, options.temperature) for name in names[first:] + names[:first]
        }
        answers = {name: measured[name].pop("tokens") for name in names}
        changed = [name for name in names if answers[name] != answers[PLAIN]]
        if changed:
            sys.exit(f"{', '.join(changed)} changed the output: {workload}, batch {batch}, turn {turn}")
        if turn >= 0:
            turns.append({"work": workload, "engines": measured})
    return turns


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean and its 95 % interval, by resampling turns."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES))
    return {
        "mean": statistics.fmean(values),
        "low": means[int(0.025 * NUM_RESAMPLES)],
        "high": means[int(0.975 * NUM_RESAMPLES) - 1],
    }


def rows_of(batch: int, turns: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    rows = []
    groups = {workload: (workload,) for workload in WORKLOADS} | {"code and docs": WORKLOADS[:2], "all": WORKLOADS}
    for group, members in groups.items():
        group_turns = [turn["engines"] for turn in turns if turn["work"] in members]
        for name in names:
            speed_up, tpot_speed_up = ([turn[PLAIN][key] / turn[name][key] for turn in group_turns] for key in ("seconds", "tpot"))
            drafts, drafted, accepted = (sum(turn[name][key] for turn in group_turns) for key in ("drafts", "drafted", "accepted"))
            rows.append(
                {
                    "work": group,
                    "batch": batch,
                    "engine": name,
                    "seconds": spread([turn[name]["seconds"] for turn in group_turns]),
                    "speed_up": {**spread(speed_up), **interval(speed_up)},
                    "tpot_speed_up": {**spread(tpot_speed_up), **interval(tpot_speed_up)},
                    "accepted_share": accepted / drafted if drafted else None,
                    "accepted_length": 1 + accepted / drafts if drafts else None,
                }
            )
    return rows


def auto_of(batch: int, turns: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare auto with plain decoding and with the best single drafter by the median over all workloads."""
    fixed = [row for row in rows if row["work"] == "all" and row["engine"] != AUTO]
    result: dict[str, Any] = {"batch": batch}
    for key, ups, prefix in (("seconds", "speed_up", ""), ("tpot", "tpot_speed_up", "tpot ")):
        best = max(fixed, key=lambda row: row[ups]["median"])["engine"]
        ratios = {name: [t["engines"][name][key] / t["engines"][AUTO][key] for t in turns] for name in (PLAIN, best)}
        result |= {
            f"{prefix}best": best,
            f"{prefix}auto/off": interval(ratios[PLAIN]),
            f"{prefix}auto/best": interval(ratios[best]),
        }
    return result


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        share = (
            ""
            if row["accepted_share"] is None
            else f", {row['accepted_share']:.0%} of draft tokens, {row['accepted_length']:.2f} per draft"
        )
        up = row["speed_up"]
        print(
            f"batch {row['batch']}, {row['work']}: {row['engine']} {up['median']:.2f}x ({up['min']:.2f} to {up['max']:.2f}), "
            f"per token {row['tpot_speed_up']['median']:.2f}x{share}",
            flush=True,
        )


def main() -> None:
    options = parse()
    llms = engines(options)
    for llm in llms.values():
        touch(llm, options)
    rows: list[dict[str, Any]] = []
    autos: list[dict[str, Any]] = []
    for batch in options.batches:
        turns = measure(options, llms, batch)
        batch_rows = rows_of(batch, turns, list(llms))
        show(batch_rows)
        rows += batch_rows
        if AUTO in llms:
            autos.append(auto_of(batch, turns, batch_rows))
            print(autos[-1], flush=True)
    result = {
        **provenance("speculation", sys.argv),
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "quality": "lossless: the same tokens as plain decoding, compared in this run",
        "rows": rows,
        "auto": autos,
    }
    if options.out:
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
