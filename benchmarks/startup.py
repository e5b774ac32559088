"""Processor time from the start of Python to the first token of the demo model, by phase.

``python benchmarks/startup.py --out benchmarks/results/startup.json``

Each round starts one new process per figure; the first round warms the caches of the file system and is not counted. Figures are
medians of user and system time of all threads, which other work on the machine disturbs less than wall time. The goal is what
``import torch`` takes in the same process and 0.8 seconds.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 0.8  # seconds beside ``import torch``
# The phases of loading are those of ``LoadTimer``, in processor time instead of wall time.
CHILD = """
import json, time
from contextlib import contextmanager
seconds, begin = {}, 0.0
def end(phase):
    global begin
    now = time.process_time()
    seconds[phase], begin = now - begin, now
end("python")
import torch
end("import torch")
import hasten
llm_class, params = hasten.LLM, hasten.SamplingParams(max_tokens=1)
end("import hasten")
from hasten.entrypoints.progress import LoadTimer
def phase(self, name):
    start = time.process_time()
    yield
    seconds[name] = time.process_time() - start
LoadTimer.phase = contextmanager(phase)
known = sum(seconds.values())
llm = llm_class("demo")
now = time.process_time()
seconds["rest of loading"] = now - begin - (sum(seconds.values()) - known)
begin = now
llm.generate("def f(", params, use_tqdm=False)
end("first token")
print(json.dumps(seconds))
"""


def first_token() -> dict[str, float]:
    """Return phase -> processor seconds of one new process."""
    result = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    seconds: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    total = sum(seconds.values())
    over = total - seconds["python"] - seconds["import torch"]
    return {**seconds, "total": total, "total without import torch": over}


def command(*arguments: str) -> float:
    """Return the processor seconds of one command line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "hasten", *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    for number in range(-1, options.rounds):
        figures = {
            **first_token(),
            "hasten --help": command("--help"),
            "hasten generate demo": command("generate", "demo", "def f(", "--max-tokens", "1"),
        }
        if number >= 0:
            rounds.append(figures)
    rows: list[dict[str, Any]] = [
        {"phase": name, "median": statistics.median(values), "low": min(values), "high": max(values)}
        for name in rounds[0]
        for values in [[figures[name] for figures in rounds]]
    ]
    for row in rows:
        print(f"{row['phase']:28}{row['median']:8.3f} s   {row['low']:.3f} to {row['high']:.3f}")
    over = next(row["median"] for row in rows if row["phase"] == "total without import torch")
    print(f"beside import torch: {over:.2f} s, allowed {LIMIT} s")
    if options.out:
        from hasten.bench.provenance import provenance

        result = {**provenance("startup", sys.argv), "limit": LIMIT, "rows": rows, "rounds": rounds}
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    sys.exit(over > LIMIT)


if __name__ == "__main__":
    main()
