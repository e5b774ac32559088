"""What the result cache costs and saves: hits, equal requests at a time, and a load with repeats.

``python benchmarks/result_cache.py --out benchmarks/results/result_cache.json``

On the demo model: a hit at 512 prompt and 256 output tokens per store, after tokenising; 64 equal requests at once; and the
throughput of 200 requests of which 30 % repeat an earlier one, with and without the cache in turn: by default, and without prefix
cache and speculation, which reuse repeats in their own ways. Redis is started on the loopback
interface.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten import LLM, AsyncLLM, SamplingParams
from hasten.bench.provenance import provenance

PROMPT, OUTPUT, HITS = 512, 256, 500
NUM_REQUESTS, REPEATED, LOAD_PROMPT, LOAD_OUTPUT = 200, 0.3, 128, 64
GOALS_MS = {"memory": 1.0, "sqlite": 2.0, "redis": 3.0}
# By default the prefix cache and the suffix drafter make repeats cheap, too.
LOADS: dict[str, dict[str, Any]] = {
    "default": {},
    "no other reuse": {"prefix_caching": False, "speculative_method": "off"},
}
MODEL: dict[str, Any] = {"max_model_len": 1024, "kv_cache_memory": "256MiB"}


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start a server on the loopback interface, without persistence, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def hits(address: str) -> dict[str, float]:
    """Return the seconds of a hit, from token ids to the output."""
    prompt = {"prompt_token_ids": list(range(100, 100 + PROMPT))}
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    seconds, streamed = [], []
    with LLM("demo", result_cache=address, **MODEL) as llm:
        computed = llm.generate(prompt, params, use_tqdm=False)[0]
        while llm.stats()["result_cache"]["unwritten"]:
            time.sleep(0.01)
        for _ in range(HITS):
            begin = time.perf_counter()
            found = llm.generate(prompt, params, use_tqdm=False)[0]
            seconds.append(time.perf_counter() - begin)
            assert found.metrics.from_result_cache and found.outputs == computed.outputs
            begin = time.perf_counter()
            list(llm.stream(prompt, params))
            streamed.append(time.perf_counter() - begin)
    quantiles = statistics.quantiles(seconds, n=100)
    return {"p50": quantiles[49], "p99": quantiles[98], "p50_streamed": statistics.median(streamed)}


async def equal_requests() -> dict[str, int]:
    """Send 64 equal requests at once, and return how many the engine computed."""
    async with AsyncLLM("demo", result_cache="memory:", **MODEL) as llm:
        params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
        outputs = await asyncio.gather(*(llm.generate("def binary_search(", params) for _ in range(64)))
        stats = await llm.stats()
    assert len({output.outputs for output in outputs}) == 1
    return {"requests": 64, "computed": stats["requests"]["finished"]["length"], "shared": stats["result_cache"]["shared"]}


def throughput(pairs: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return requests per second with and without the cache, in turn. Every run starts with empty caches."""
    draw = random.Random(1)
    fresh = [[draw.randrange(8000) for _ in range(LOAD_PROMPT)] for _ in range(NUM_REQUESTS)]
    repeats = set(draw.sample(range(1, NUM_REQUESTS), round(REPEATED * NUM_REQUESTS)))
    ids: list[list[int]] = []
    for i in range(NUM_REQUESTS):
        ids.append(draw.choice(ids) if i in repeats else fresh[i])
    prompts = [{"prompt_token_ids": prompt} for prompt in ids]
    params = SamplingParams(temperature=0, max_tokens=LOAD_OUTPUT, ignore_eos=True)
    rates: dict[str, list[float]] = {"without": [], "with": []}
    outputs: dict[str, Any] = {}
    for _ in range(pairs):
        for name, cache in (("without", None), ("with", "memory:")):
            with LLM("demo", result_cache=cache, max_num_seqs=8, **options, **MODEL) as llm:
                llm.generate(prompts[:1], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
                begin = time.perf_counter()
                found = [output.outputs for output in llm.generate(prompts, params, use_tqdm=False)]
                rates[name].append(NUM_REQUESTS / (time.perf_counter() - begin))
            assert outputs.setdefault("all", found) == found
    ratios = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
    return {
        "requests": NUM_REQUESTS,
        "repeated": sum(prompt in ids[:i] for i, prompt in enumerate(ids)) / NUM_REQUESTS,
        "requests_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as redis:
        addresses = {"memory": "memory:", "sqlite": f"sqlite:{name}/results.sqlite", "redis": redis}
        found = {store: hits(address) for store, address in addresses.items()}
    for store, figures in found.items():
        figures["goal_p50"] = GOALS_MS[store] / 1e3
        print(f"{store}: hit p50 {1e3 * figures['p50']:.2f} ms (goal {GOALS_MS[store]}), p99 {1e3 * figures['p99']:.2f} ms")
    flights = asyncio.run(equal_requests())
    print(f"64 equal requests: {flights['computed']} computed, {flights['shared']} shared")
    loads = {name: throughput(options.pairs, settings) for name, settings in LOADS.items()}
    for name, load in loads.items():
        print(f"{load['repeated']:.0%} repeats, {name}: {load['ratio']:.2f} times the throughput (goal 1.3)")
    result = {**provenance("result cache", sys.argv), "hits": found, "equal_requests": flights, "throughput": loads}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
