"""What guessing ahead gains on real text at real cost: every drafter, plain decoding and ``auto``, in turn, on the same prompts.

``python benchmarks/grow.py demo grown/demo && python benchmarks/grow.py demo-draft grown/draft``
``python benchmarks/grow_heads.py demo-eagle grown/eagle --grown grown/demo`` and what other heads there are
``python benchmarks/speculation.py grown/demo --draft-model grown/draft --heads grown/eagle --out speculation.json``

Three works, from text that the model has never been trained on, in turn: code and documentation to go on with, and *repeat*: a
piece of code whose beginning is written once more, so that the answer mostly repeats the prompt, as an edit does. In each turn all
engines get the same prompts, one after the other, the first one another each time; a turn of each work is a warm-up. Answers are
compared: a drafter that changes one token ends the run. Intervals are 95 % percentile bootstraps of the mean over turns.

Two times of each batch. *Until the last request ends*: what a list of prompts takes that is as long as the batch. Requests whose
guesses are right end first, and what is left is a smaller batch. *Per token of a request*, the mean over requests: what their users
wait for, and what a server with more requests than it takes at a time gains.
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
WORKS = ("code", "docs", "repeat")
PLAIN, AUTO = "off", "auto"
RESAMPLES = 10_000
MOST_TOKENS = 512  # of a prompt and its answer
LINE_MIB = 80  # so many tokens of a model of half a billion parameters and its draft model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft-model", help="without one only the other drafters are measured")
    parser.add_argument("--heads", nargs="*", default=[], help="folders of Medusa heads and EAGLE-3 heads; auto uses the last one")
    parser.add_argument("--exits", help="trained exits: the model's own first layers guess too")
    parser.add_argument("--self-draft-layers", type=int, help="so many of them")
    parser.add_argument("--only", nargs="+", help="these engines, beside plain decoding")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of each prompt")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def texts(kind: str) -> list[str]:
    with HELDOUT.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if row["kind"] == ("docs" if kind == "docs" else "code")]


def prompts(llm: LLM, work: str, count: int, length: int, turn: int) -> list[list[int]]:
    draw = random.Random(f"{work}/{turn}/{count}")
    ids = [llm.tokenizer.encode(text) for text in texts(work)]
    ids = [text for text in ids if len(text) > 2 * length]
    made = []
    for _ in range(count):
        text = draw.choice(ids)
        begin = draw.randrange(len(text) - length)
        piece = text[begin : begin + length]
        made.append(piece + piece[: length // 4] if work == "repeat" else piece)
    return made


def last_first_token(outputs: list[RequestOutput]) -> float:
    """Seconds until every request has its first token."""
    waits = [output.metrics.ttft for output in outputs if output.metrics.ttft is not None]
    assert len(waits) == len(outputs), "a request without a token"
    return max(waits)


def seconds_per_token(outputs: list[RequestOutput]) -> float:
    """The mean over requests, their first tokens left out."""
    rates = [output.metrics.tokens_per_second for output in outputs if output.metrics.tokens_per_second]
    assert len(rates) == len(outputs), "a request of one token"
    return statistics.fmean(1 / rate for rate in rates)


def run(llm: LLM, asked: list[list[int]], tokens: int, temperature: float) -> dict[str, Any]:
    """``seconds`` from the last first token on: what guessing can make faster. ``tpot``: seconds per output token of a request."""
    params = [SamplingParams(temperature=temperature, seed=i, max_tokens=tokens, ignore_eos=True) for i in range(len(asked))]
    before, begin = dataclasses.replace(llm.engine.stats), time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked], params, use_tqdm=False)
    seconds = time.perf_counter() - begin
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
    kinds: dict[str, dict[str, Any]] = {PLAIN: {}, "prompt_lookup": {}, "suffix": {}}
    everything: dict[str, Any] = {}
    if options.draft_model:
        everything["draft_model"] = options.draft_model
        kinds["draft_model"] = {"draft_model": options.draft_model}
    for folder in options.heads:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        kinds["eagle" if "speculators_model_type" in config else "medusa"] = {"draft_heads": folder}
        everything["draft_heads"] = folder
    if options.exits:
        own = {"exits": options.exits, "self_draft_layers": options.self_draft_layers}
        everything |= own
        kinds["self_speculation"] = own
    kinds[AUTO] = everything
    # Room for all prompts of a batch in one step, and for all they become: no request waits for another.
    most = max(options.batches) * (options.prompt + options.prompt // 4)
    memory = f"{max(options.batches) * LINE_MIB}MiB"
    room = {"kv_cache_memory": memory, "max_model_len": MOST_TOKENS, "max_num_batched_tokens": max(most, 2048)}
    common: dict[str, Any] = {"threads": options.threads, **room}
    wanted = kinds if options.only is None else [PLAIN, *options.only]
    return {
        name: LLM(options.model, quantization=options.quantization, speculative_method=name, **common, **kinds[name])
        for name in wanted
    }


def touch(llm: LLM, options: argparse.Namespace) -> None:
    """Write to all of the KV pool once: what the system takes for fresh memory, a server pays at its start and never again."""
    for turn in range(1 + MOST_TOKENS // options.prompt):
        run(llm, prompts(llm, "code", max(options.batches), options.prompt, -1000 - turn), 4, options.temperature)


def measure(options: argparse.Namespace, llms: dict[str, LLM], batch: int) -> list[dict[str, Any]]:
    """One entry per turn: the work, and what each engine did."""
    turns = []
    names = list(llms)
    for turn in range(-len(WORKS), options.turns):
        work = WORKS[turn % len(WORKS)]
        asked = prompts(llms[PLAIN], work, batch, options.prompt, turn)
        first = turn % len(names)
        found = {name: run(llms[name], asked, options.tokens, options.temperature) for name in names[first:] + names[:first]}
        answers = {name: found[name].pop("tokens") for name in names}
        changed = [name for name in names if answers[name] != answers[PLAIN]]
        if changed:
            sys.exit(f"{', '.join(changed)} changed the output: {work}, batch {batch}, turn {turn}")
        if turn >= 0:
            turns.append({"work": work, "engines": found})
    return turns


def interval(values: list[float]) -> dict[str, float]:
    """The mean, and its 95 % interval by resampling turns."""
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return {"mean": statistics.fmean(values), "low": means[int(0.025 * RESAMPLES)], "high": means[int(0.975 * RESAMPLES) - 1]}


def rows_of(batch: int, turns: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    rows = []
    groups = {work: (work,) for work in WORKS} | {"code and docs": WORKS[:2], "all": WORKS}
    for work, members in groups.items():
        mine = [turn["engines"] for turn in turns if turn["work"] in members]
        for name in names:
            speed_up, tpot_speed_up = ([turn[PLAIN][key] / turn[name][key] for turn in mine] for key in ("seconds", "tpot"))
            drafts, drafted, accepted = (sum(turn[name][key] for turn in mine) for key in ("drafts", "drafted", "accepted"))
            rows.append(
                {
                    "work": work,
                    "batch": batch,
                    "engine": name,
                    "seconds": spread([turn[name]["seconds"] for turn in mine]),
                    "speed_up": {**spread(speed_up), **interval(speed_up)},
                    "tpot_speed_up": {**spread(tpot_speed_up), **interval(tpot_speed_up)},
                    "accepted_share": accepted / drafted if drafted else None,
                    "accepted_length": 1 + accepted / drafts if drafts else None,
                }
            )
    return rows


def auto_of(batch: int, turns: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """auto beside plain decoding and beside the best engine that does one thing only, chosen by its median over all works."""
    fixed = [row for row in rows if row["work"] == "all" and row["engine"] != AUTO]
    found: dict[str, Any] = {"batch": batch}
    for key, ups, prefix in (("seconds", "speed_up", ""), ("tpot", "tpot_speed_up", "tpot ")):
        best = max(fixed, key=lambda row: row[ups]["median"])["engine"]
        ratios = {name: [t["engines"][name][key] / t["engines"][AUTO][key] for t in turns] for name in (PLAIN, best)}
        found |= {f"{prefix}best": best, f"{prefix}auto/off": interval(ratios[PLAIN]), f"{prefix}auto/best": interval(ratios[best])}
    return found


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        share = (
            ""
            if row["accepted_share"] is None
            else f", {row['accepted_share']:.0%} of guesses, {row['accepted_length']:.2f} a draft"
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
        mine = rows_of(batch, turns, list(llms))
        show(mine)
        rows += mine
        if AUTO in llms:
            autos.append(auto_of(batch, turns, mine))
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
