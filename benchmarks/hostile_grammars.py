"""What hostile grammars do to the requests beside them.

``python benchmarks/hostile_grammars.py --out benchmarks/results/hostile_grammars.json``

Eight ordinary requests stream in one batch, first alone and then while other tasks submit grammars that are made to take long: at
compile time, or at each step. The gap between two deltas of an ordinary request tells its pace. Goal: the longest gap is at most
twice the longest one beside as many harmless grammars.

The two take turns, ``--rounds`` times. Each grammar stands alone in its requests, so that a slow one is seen.
"""

import argparse
import asyncio
import itertools
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from hasten import AsyncLLM, HastenError, SamplingParams, StructuredOutputs
from hasten.bench.provenance import provenance

STREAMS, TOKENS, CALLERS = 8, 500, 2
PROMPTS = (
    "import os\n",
    "def read(path):\n    ",
    "class Tree:\n    ",
    "The event loop ",
    "for i in range(",
    "try:\n    ",
    "x = [",
    "# ",
)
HARMLESS: dict[str, dict[str, Any]] = {
    "a schema": {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    "a choice": {"choice": ["yes", "no"]},
    "an expression": {"regex": "[a-z]{1,20}"},
    "a grammar": {"grammar": 'start: "a" | "b" start'},
}


def doubling(rule: str, last: str, start: str) -> str:
    """Return a grammar of 60 rules, each made of the next one."""
    return "\n".join([start, *(rule.format(i=i, j=i + 1) for i in range(60)), last.format(i=60)])


COMPILE_TIME: dict[str, dict[str, Any]] = {
    "30,000 levels": {"json": '{"items":' * 30_000 + "true" + "}" * 30_000},
    "100,000 values": {"json": json.dumps({"enum": list(range(100_000))})},
    "9,000 values": {"json": json.dumps({"enum": list(range(9_000))})},
    "2,000 properties": {"json": {"properties": {f"p{i}": {} for i in range(2_000)}}},
    "a common multiple": {"json": {"allOf": [{"type": "integer", "multipleOf": n} for n in (7, 11, 13, 17, 19, 23)]}},
    "terminals that double": {"grammar": doubling("T{i}: T{j} T{j}", 'T{i}: "a"', "start: T0")},
    "a billion repetitions": {"regex": "(a{1000}){1000000}"},
    "30,000 brackets": {"regex": "(" * 30_000 + "a" + ")" * 30_000},
    "4,096 choices": {"choice": [f"choice {i}" for i in range(4_096)]},
}
STEP_TIME: dict[str, dict[str, Any]] = {
    "backtracking": {"regex": "((a|a)*)*b|(a|aa)+"},
    "exponential states": {"regex": "(a|b)*a(a|b){60}c"},
    "large classes": {"regex": r"(\p{L}|\p{N}){0,200}(\w{3,9}\W){50}"},
    "a million repetitions": {"regex": "a{1000000}"},
    "a long forced text": {"choice": ["a b c " * 8_000]},
    "ambiguity": {"grammar": 'start: s\ns: s s s | s s | "a"'},
    "empty rules": {"grammar": 'start: s\ns: s s | "a" | '},
    "rules that branch": {"grammar": doubling("r{i}: r{j} | r{j} r{j}", 'r{i}: "a"', "start: r0")},
    "a long string": {"json": {"type": "string", "minLength": 100_000}},
    "deep recursion": {"json": {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}},
    "an intersection": {"grammar": "start: A\nA: /.*a.{15}/ & /.*b.{14}/ & ~/.*c.{13}/"},
}


async def stream(llm: AsyncLLM, number: int) -> list[float]:
    """Return the seconds between the deltas of an ordinary request."""
    times: list[float] = []
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.8, seed=number)
    async for _ in llm.stream(PROMPTS[number % len(PROMPTS)], params):
        times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


async def submit(llm: AsyncLLM, form: dict[str, Any], seed: int, found: dict[str, int]) -> None:
    """Run requests of one grammar after the other, and count how they end."""
    for number in itertools.count(seed):
        try:
            # A line break at the end is white space to a schema and another grammar to the cache.
            fields = {name: value + "\n" * (number % 7) if name == "grammar" else value for name, value in form.items()}
            params = SamplingParams(structured_outputs=StructuredOutputs(**fields), max_tokens=40, seed=number)
            output = await llm.generate("a", params)
            end = "failed" if output.error is not None else str(output.outputs[0].finish_reason)
        except HastenError:
            end = "refused"
            await asyncio.sleep(0.05)
        found[end] = found.get(end, 0) + 1


async def measure(llm: AsyncLLM, form: dict[str, Any]) -> tuple[list[float], dict[str, int]]:
    """Return the gaps of the ordinary requests while others submit a grammar, and how those ended.

    A new harmless grammar waits first until those of the last measurement are vetted.
    """
    await llm.generate("a", SamplingParams(structured_outputs=StructuredOutputs(regex=f"a|{time.monotonic_ns()}"), max_tokens=4))
    found: dict[str, int] = {}
    callers = [asyncio.create_task(submit(llm, form, 1000 * i, found)) for i in range(CALLERS)]
    gaps = await asyncio.gather(*(stream(llm, number) for number in range(STREAMS)))
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return list(itertools.chain.from_iterable(gaps)), found


async def measure_all(model: str, rounds: int, threads: int | None) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    async with AsyncLLM(model, kv_cache_memory="256MiB", max_model_len=1024, threads=threads) as llm:
        await measure(llm, HARMLESS["a choice"])  # starts what is started once
        kinds = {"harmless": HARMLESS, "compile time": COMPILE_TIME, "step time": STEP_TIME}
        for _ in range(rounds):
            for kind, forms in kinds.items():
                for name, form in forms.items():
                    gaps, ends = await measure(llm, form)
                    row = rows.setdefault(name, {"grammar": name, "kind": kind, "median_gap": [], "longest_gap": [], "ends": {}})
                    row["median_gap"].append(statistics.median(gaps))
                    row["longest_gap"].append(max(gaps))
                    for end, count in ends.items():
                        row["ends"][end] = row["ends"].get(end, 0) + count
                    print(f"{kind:14}{name:24}{statistics.median(gaps) * 1e3:8.1f} ms{max(gaps) * 1e3:8.1f} ms  {ends}", flush=True)
    for row in rows.values():
        row["median_gap"], row["longest_gap"] = (statistics.median(row[name]) for name in ("median_gap", "longest_gap"))
    usual = max(row["longest_gap"] for row in rows.values() if row["kind"] == "harmless")
    for row in rows.values():
        row["of_usual"] = row["longest_gap"] / usual
    hostile = max(row["of_usual"] for row in rows.values() if row["kind"] != "harmless")
    return {"usual_longest_gap": usual, "longest_of_usual": hostile, "rows": list(rows.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.getLogger("hasten").setLevel(logging.CRITICAL)  # requests that fail are the point
    result = {
        **provenance("hostile_grammars", sys.argv),
        "model": options.model,
        "streams": STREAMS,
        "tokens": TOKENS,
        "rounds": options.rounds,
    }
    result |= asyncio.run(measure_all(options.model, options.rounds, options.threads))
    print(f"longest gap beside hostile grammars: {result['longest_of_usual']:.2f} of the usual")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(result["longest_of_usual"] > 2)


if __name__ == "__main__":
    main()
