"""How long the event loop of ``AsyncLLM`` is held up while prompts of a megabyte arrive.

``python benchmarks/loop_lag.py --out benchmarks/results/loop_lag.json``

A tiny random model with the demo model's tokenizer has room for two million tokens, so that a megabyte is tokenised and not refused
for its length. A task sleeps for a millisecond at a time; what it sleeps longer is the lag. Goal: a 99th percentile of 50 ms.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hasten
from hasten import AsyncLLM, RequestOutput, SamplingParams
from hasten.bench.provenance import provenance

DEMO = Path(hasten.__file__).parent / "demo"
NUM_PROMPTS, LENGTH, SECONDS = 6, 1_000_000, 12


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    vocab_size = json.loads((DEMO / "model" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=2_000_000, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / "model" / name, folder)


async def measure(folder: Path) -> list[float]:
    """Return the lag of each sleep, in seconds."""
    text = ((DEMO / "heldout.jsonl").read_text(encoding="utf-8") * 10)[: LENGTH + NUM_PROMPTS]
    lags: list[float] = []
    async with AsyncLLM(str(folder), kv_cache_memory="2GiB") as llm:
        params = SamplingParams(max_tokens=1, temperature=0)
        tasks: list[asyncio.Task[RequestOutput]] = []
        end = time.perf_counter() + SECONDS
        while (begin := time.perf_counter()) < end:
            if len(tasks) < NUM_PROMPTS and begin > end - SECONDS + 0.3 * len(tasks):
                tasks.append(asyncio.create_task(llm.generate(text[len(tasks) :][:LENGTH], params)))
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - begin - 0.001)
        for task in tasks:
            task.cancel()
    return lags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        lags = asyncio.run(measure(Path(folder)))
    percentiles = statistics.quantiles(lags, n=100)
    figures = {"p50": percentiles[49], "p99": percentiles[98], "max": max(lags), "sleeps": len(lags)}
    print(", ".join(f"{name} {1e3 * figures[name]:.1f} ms" for name in ("p50", "p99", "max")), f"of {len(lags)} sleeps")
    if options.out:
        options.out.write_text(json.dumps({**provenance("loop_lag", sys.argv), "figures": figures}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
