"""``AsyncLLM`` with a Redis cache that delays, resets and forgets: no task fails or gets the answer of another."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, AsyncLLM, RequestOutput, SamplingParams

from ..exhaustive import repeats
from .fault_proxy import FaultProxy
from .redis_server import RedisServer

SMALL: dict[str, Any] = {"max_model_len": 128, "kv_cache_memory": "16MiB", "threads": 1}
PROMPTS = [f"{start} {number}" for start in ("import", "class", "def") for number in range(4)]
PARAMS = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (2, 8)]
TASKS, CANCELS = 20, 8  # per round


async def rounds(
    llm: AsyncLLM, proxy: FaultProxy, server: RedisServer, expected: dict[tuple[str, int], Any]
) -> tuple[int, int, int]:
    """Run many tasks with random cancels. Return how many were answered, from the cache or not, and cancelled."""
    draw, answered, from_cache, cancelled = random.Random(8), 0, 0, 0
    with server.client() as client:
        for number in range(repeats("result cache tasks") // TASKS):
            if number % 7 == 3:
                proxy.reset()
            if number % 5 == 4:
                client.flushdb()
            wanted = [(draw.choice(PROMPTS), draw.choice(PARAMS)) for _ in range(TASKS)]
            tasks = [asyncio.create_task(llm.generate(prompt, params)) for prompt, params in wanted]
            for task in draw.sample(tasks, CANCELS):
                await asyncio.wait([task], timeout=draw.choice((0.0, 0.001, 0.005, 0.02)))
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for (prompt, params), result in zip(wanted, results, strict=True):
                if isinstance(result, asyncio.CancelledError):
                    cancelled += 1
                    continue
                assert isinstance(result, RequestOutput), result
                assert result.outputs == expected[prompt, params.max_tokens or 0]
                answered += 1
                from_cache += result.metrics.from_result_cache
    return answered, from_cache, cancelled


def test_cancels_delays_and_resets_give_no_wrong_answer(
    fault_proxy: FaultProxy, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    with LLM("demo", **SMALL) as plain:
        flat = [(prompt, params) for prompt in PROMPTS for params in PARAMS]
        outputs = plain.generate([prompt for prompt, _ in flat], [params for _, params in flat], use_tqdm=False)
    expected = {(prompt, params.max_tokens or 0): output.outputs for (prompt, params), output in zip(flat, outputs, strict=True)}
    delays = random.Random(9)
    fault_proxy.delay = lambda: delays.choice((0.0, 0.0, 0.0, 0.001, 0.01, 0.05))

    async def run() -> tuple[int, int, int]:
        async with AsyncLLM("demo", result_cache=fault_proxy.url, result_cache_timeout=0.03, **SMALL) as llm:
            return await rounds(llm, fault_proxy, redis_server, expected)

    answered, from_cache, cancelled = asyncio.run(run())
    assert from_cache > 10 and cancelled > 10 and answered - from_cache > 10
