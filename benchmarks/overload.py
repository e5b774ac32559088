"""A server under ten times the load that it can bear: ``python benchmarks/overload.py --out benchmarks/results/overload.json``

The engine is the demo whose every step takes 20 ms, so that its capacity is fixed. First 32 clients ask in turn, which gives the
peak goodput (output tokens of complete answers per second). Then requests come at ten times the rate that the peak served, whatever
the answers are.

Reported are the goodput as a share of the peak, the times of rejections (429), every other status, and the most connections
that were open at any moment.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hasten.bench.provenance import provenance
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.run_server import run_server
from hasten.serving.server_options import ServerOptions

STEP_SECONDS, SEQUENCES, TOKENS, PLACES = 0.020, 16, 16, 80


async def load_slow(config: ModelConfig) -> AsyncLLM:
    """Return the demo with steps of 20 ms."""
    options: dict[str, Any] = {"max_num_seqs": SEQUENCES, "threads": 1, "max_model_len": 256, "kv_cache_memory": "64MiB"}
    llm = await asyncio.to_thread(lambda: AsyncLLM("demo", speculative_method="off", **options))
    runner = llm._client.loaded.engine._runner  # type: ignore[attr-defined]
    run = runner.run

    def slow_run(plan: Any) -> Any:
        begin = time.perf_counter()
        found = run(plan)
        time.sleep(max(0.0, STEP_SECONDS - (time.perf_counter() - begin)))
        return found

    runner.run = slow_run
    gc.collect()
    gc.freeze()  # as the process of an engine does; here the engine is in that of the server
    return llm


def serve() -> None:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    run_server([ModelConfig("demo", "demo")], ServerOptions(port=0, max_requests=PLACES), say, load=load_slow)


async def ask(port: int, number: int) -> tuple[int, float, int]:
    """Return the status, the seconds to the end and the output tokens."""
    body = {"model": "demo", "prompt": f"number {number}", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    begin = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + data)
        text = await reader.read()
        writer.close()
    except OSError:
        return 0, time.perf_counter() - begin, 0
    status = int(text[9:12]) if text else 0
    tokens = int(re.findall(rb'"completion_tokens":(\d+)', text)[-1]) if status == 200 else 0
    return status, time.perf_counter() - begin, tokens


async def peak(port: int, seconds: float) -> float:
    """Return the output tokens per second that 32 clients in turn get."""
    end, tokens = time.perf_counter() + seconds, 0

    async def client(start: int) -> int:
        found, number = 0, start
        while time.perf_counter() < end:
            found += (await ask(port, number))[2]
            number += 32
        return found

    begin = time.perf_counter()
    tokens = sum(await asyncio.gather(*(client(i) for i in range(32))))
    return tokens / (time.perf_counter() - begin)


async def overload(port: int, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a rate for a time."""
    tasks: list[asyncio.Task[tuple[int, float, int]]] = []
    most_open, begin = 0, time.perf_counter()
    while (now := time.perf_counter() - begin) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.create_task(ask(port, 10**6 + len(tasks))))
        most_open = max(most_open, sum(not task.done() for task in tasks[-2000:]))
        await asyncio.sleep(0.005)
    results = await asyncio.gather(*tasks)
    elapsed = time.perf_counter() - begin
    rejections = sorted(taken for status, taken, _ in results if status == 429)
    return {
        "requests": len(results),
        "rate_per_s": rate,
        "statuses": {str(status): count for status, count in Counter(status for status, _, _ in results).items()},
        "goodput_tokens_per_s": sum(tokens for _, _, tokens in results) / elapsed,
        "rejection_ms": {
            "p50": 1e3 * statistics.median(rejections),
            "p99": 1e3 * rejections[int(0.99 * (len(rejections) - 1))],
        },
        "most_open_connections": most_open,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    program = subprocess.Popen([sys.executable, __file__, "--serve"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert program.stderr is not None
    text = ""
    while "is loaded" not in text:
        line = program.stderr.readline()
        assert line, f"the server ended: {text}"
        text += line
    port = int(re.findall(r"http://[^ ]*:(\d+)", text)[0])
    gc.disable()  # of the client, whose thousands of tasks would stop its clock
    asyncio.run(peak(port, 2.0))  # warm up
    best = asyncio.run(peak(port, 10.0))
    found = asyncio.run(overload(port, 10 * best / TOKENS, options.seconds))
    program.terminate()
    program.wait()
    share = found["goodput_tokens_per_s"] / best
    result = {**provenance("overload", sys.argv), "places": PLACES, "peak_tokens_per_s": best, **found, "goodput_share": share}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
