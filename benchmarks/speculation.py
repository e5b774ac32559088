"""What guessing ahead gains on real text at real cost: each drafter beside plain decoding, in turn, on the same prompts.

``python benchmarks/grow.py demo grown/demo && python benchmarks/grow.py demo-draft grown/draft``
``python benchmarks/speculation.py grown/demo --draft grown/draft --out benchmarks/results/speculation.json``

Three works, from text that the model has never been trained on: code and documentation to go on with, and *repeat*: a piece of code
whose beginning is written once more, so that the answer mostly repeats the prompt, as an edit does. Outputs are compared: a drafter
that changes one token ends the run. Every engine has a warm-up; then all take turns, A B C A B C.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hasten
from hasten import LLM, SamplingParams
from hasten.bench.machine import this_machine
from hasten.bench.report import spread
from hasten.bench.versions import commit, versions

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
WORKS = ("code", "docs", "repeat")
PLAIN = "plain"


def texts(kind: str) -> list[str]:
    with HELDOUT.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if row["kind"] == ("docs" if kind == "docs" else "code")]


def prompts(llm: LLM, work: str, count: int, length: int, turn: int) -> list[list[int]]:
    draw = random.Random(f"{work}/{turn}")
    ids = [llm.tokenizer.encode(text) for text in texts(work)]
    ids = [text for text in ids if len(text) > 2 * length]
    made = []
    for _ in range(count):
        text = draw.choice(ids)
        begin = draw.randrange(len(text) - length)
        piece = text[begin : begin + length]
        made.append(piece + piece[: length // 4] if work == "repeat" else piece)
    return made


def run(llm: LLM, work: list[list[int]], tokens: int, temperature: float) -> dict[str, Any]:
    params = [SamplingParams(temperature=temperature, seed=i, max_tokens=tokens, ignore_eos=True) for i in range(len(work))]
    begin, stats = time.perf_counter(), dataclasses.replace(llm.engine.stats)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in work], params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    now = llm.engine.stats
    return {
        "tokens": [output.outputs[0].token_ids for output in outputs],
        "seconds": seconds - (first_token := max(o.metrics.first_token - o.metrics.arrival for o in outputs)),
        "first_token_seconds": first_token,
        "steps": now.num_steps - stats.num_steps,
        "drafted": now.num_drafted_tokens - stats.num_drafted_tokens,
        "accepted": now.num_accepted_tokens - stats.num_accepted_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft", help="a draft model; without one only guesses from text are measured")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-draft-tokens", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    common: dict[str, Any] = {"quantize": "int8", "threads": options.threads, "kv_cache_memory": "512MiB", "max_model_len": 1024}
    kinds: dict[str, dict[str, Any]] = {
        PLAIN: {},
        "prompt_lookup": {"speculation": "prompt_lookup"},
        "suffix": {"speculation": "suffix"},
    }
    if options.draft:
        kinds["draft_model"] = {"speculation": "draft_model", "draft_model": options.draft}
    for name in kinds:
        if name != PLAIN and options.num_draft_tokens:
            kinds[name]["num_draft_tokens"] = options.num_draft_tokens
    engines = {name: LLM(options.model, **common, **given) for name, given in kinds.items()}
    rows = []
    for work in WORKS:
        for batch in options.batches:
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
            for turn in range(options.repeats + 1):
                asked = prompts(engines[PLAIN], work, batch, options.prompt, turn)
                for name, llm in engines.items():
                    answer = run(llm, asked, options.tokens, options.temperature)
                    reference = found[PLAIN][turn]["tokens"] if name != PLAIN else answer["tokens"]
                    if answer["tokens"] != reference:
                        sys.exit(f"{name} changed the output: {work}, batch {batch}, turn {turn}")
                    found[name].append(answer)
            rows += [_row(work, batch, name, found[name][1:], found[PLAIN][1:]) for name in engines]
            for row in rows[-len(engines) :]:
                print(
                    f"{row['work']}, batch {row['batch']}: {row['engine']} {row['seconds']['median']:.3f} s, "
                    f"{row['speed_up']['median']:.2f}x ({row['speed_up']['min']:.2f} to {row['speed_up']['max']:.2f}), "
                    f"{row['accepted_share']:.0%} of drafts accepted, {row['tokens_per_step']:.2f} tokens a step",
                    flush=True,
                )
    result = {
        "benchmark": "speculation",
        "command": " ".join(["python", "benchmarks/speculation.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": dataclasses.asdict(this_machine()),
        "versions": versions(),
        "tokens": options.tokens,
        "prompt": options.prompt,
        "temperature": options.temperature,
        "quality": "lossless: the same tokens as plain decoding, compared in this run",
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


def _row(work: str, batch: int, name: str, mine: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(plain, mine, strict=True)]
    drafted, accepted = (sum(turn[key] for turn in mine) for key in ("drafted", "accepted"))
    generated = sum(len(ids) - 1 for turn in mine for ids in turn["tokens"])
    lines = generated - accepted  # each line gets one token a step, and what was accepted
    return {
        "work": work,
        "batch": batch,
        "engine": name,
        "seconds": spread([turn["seconds"] for turn in mine]),
        "speed_up": spread(ratios),
        "accepted_share": accepted / drafted if drafted else 0.0,
        "tokens_per_step": generated / max(1, lines),
        "steps": [turn["steps"] for turn in mine],
    }


if __name__ == "__main__":
    main()
