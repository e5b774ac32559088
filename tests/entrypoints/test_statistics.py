"""``LLM.stats`` and ``AsyncLLM.stats``: plain data that agrees with the outputs, and no race with the engine's thread."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, AsyncLLM, HastenError, SamplingParams
from hasten.core.request import PrefixPin
from hasten.engine.request_histograms import RequestHistograms
from hasten.engine.request_totals import RequestTotals
from hasten.entrypoints.statistics import advice

OPTIONS: dict[str, Any] = {"dtype": "float32", "block_size": 4, "max_model_len": 128, "kv_cache_memory": "8MiB"}
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
COMMON = list(range(10, 30))
LISTS = ("acceptance_by_position",)


@pytest.fixture
def llm(tiny: Callable[[str], Path]) -> LLM:
    return LLM(str(tiny("llama-gqa")), **OPTIONS)


def generate(llm: LLM, *prompts: list[int]) -> list[Any]:
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], GREEDY, use_tqdm=False)


def all_keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from all_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from all_keys(inner)


def test_the_figures_are_those_of_the_outputs(llm: LLM) -> None:
    outputs = generate(llm, [3, *COMMON], [4, *COMMON]) + generate(llm, [*COMMON, 5], [*COMMON, 6])
    stats = llm.stats()
    num_prompt = sum(output.metrics.num_prompt_tokens for output in outputs)
    num_cached = sum(output.metrics.num_cached_tokens for output in outputs)
    assert (num_prompt, num_cached) == (84, 20)
    assert stats["requests"] == {
        "added": 4,
        "waiting": 0,
        "running": 0,
        "finished": {"stop": 0, "length": 4, "abort": 0, "error": 0},
        "output_tokens": 32,
        "preemptions": 0,
    }
    prefix_cache = stats["prefix_cache"]
    assert prefix_cache.pop("advice").startswith("20 of 84 prompt tokens came from the prefix cache; 60 could have, had")
    assert prefix_cache == {"query_tokens": 84, "hit_tokens": 20, "hit_rate": 20 / 84, "shareable_tokens": 60}
    assert stats["engine"]["computed_tokens"] == 84 - 20 + 4 * 7  # no step computes the last token of an output
    assert stats["engine"]["steps"] == llm.engine.stats.num_steps > 0
    assert stats["result_cache"] is None


def test_the_blocks_of_running_requests_are_held_and_then_cached(llm: LLM) -> None:
    (allocator,) = llm.engine.scheduler.kv.allocators
    stream = llm.stream({"prompt_token_ids": COMMON}, GREEDY)
    next(stream)
    kv = llm.stats()["kv"]
    assert (kv["block_size"], kv["blocks"], kv["evicted_blocks"]) == (4, allocator.num_blocks, 0)
    assert (kv["held_blocks"], kv["cached_blocks"]) == (len(allocator.references()), 0) == (5, 0)
    assert kv["held_blocks"] + kv["cached_blocks"] + kv["free_blocks"] == kv["blocks"]
    assert kv["usage"] == 5 / kv["blocks"]
    assert llm.stats()["requests"]["running"] == 1
    list(stream)
    kv = llm.stats()["kv"]
    assert (kv["held_blocks"], kv["usage"]) == (0, 0.0)
    assert kv["cached_blocks"] == 6  # 20 prompt tokens and seven of eight computed output tokens
    assert kv["cached_blocks"] + kv["free_blocks"] == kv["blocks"]


def test_evicted_blocks_are_counted(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **{**OPTIONS, "kv_cache_memory": "384KiB"})  # 32 blocks
    for first in range(3, 13):
        generate(llm, [first, *COMMON])  # 7 blocks, of which 6 stay cached
    kv = llm.stats()["kv"]
    assert kv["blocks"] == 32
    assert kv["evicted_blocks"] > 0
    assert "cached blocks were evicted" in llm.stats()["prefix_cache"]["advice"]


def pin(llm: LLM, prompt: list[int], num_tokens: int) -> None:
    """Generate, and pin a prefix of the prompt for a minute."""
    request = llm._request({"prompt_token_ids": prompt}, GREEDY)
    llm.engine.add(dataclasses.replace(request, pins=(PrefixPin(num_tokens=num_tokens, seconds=60.0),)))
    while llm.engine.has_unfinished_requests:
        llm.engine.step()


def test_pins_are_listed(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llm.stats()["pins"]["pins"] == []
    pin(llm, [*COMMON, 5], 18)
    generate(llm, [*COMMON, 6])
    stats = llm.stats()
    (pinned,) = stats["pins"]["pins"]
    assert (pinned["num_tokens"], pinned["num_blocks"], pinned["seconds"], pinned["hits"]) == (16, 4, 60.0, 1)
    assert 0 < pinned["expires_in"] <= 60
    assert {name: stats["pins"][name] for name in ("pinned_blocks", "set", "expired")} == {
        "pinned_blocks": 4,
        "set": 1,
        "expired": 0,
    }
    assert stats["kv"]["held_blocks"] == 4
    now = llm.engine.clock()
    monkeypatch.setattr(llm.engine, "clock", lambda: now + 61.0)
    stats = llm.stats()
    assert (stats["pins"]["pins"], stats["pins"]["expired"], stats["kv"]["held_blocks"]) == ([], 1, 0)


def test_every_key_is_documented_and_the_values_are_plain(llm: LLM) -> None:
    for stats in (llm.stats(), (pin(llm, COMMON, 16), llm.stats())[1]):
        documented = set(re.findall(r"``(\w+)``", f"{LLM.stats.__doc__} {RequestHistograms.__doc__}"))
        assert set(all_keys(stats)) <= documented
        assert json.loads(json.dumps(stats)) == stats  # strings, numbers, None, lists and dicts: msgpack takes them too


def test_speculation_is_counted(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), speculative_method="prompt_lookup", **OPTIONS)
    generate(llm, [5, 6, 7, 8] * 8)
    engine, stats = llm.stats()["engine"], llm.engine.stats
    assert engine["drafts"] > 0
    for name in ("drafts", "drafted_tokens", "accepted_tokens"):
        assert engine[name] == getattr(stats, f"num_{name}")
    assert engine["mean_accepted_length"] == 1 + engine["accepted_tokens"] / engine["drafts"]
    assert engine["acceptance_by_position"] == list(stats.acceptance_by_position) != []


@pytest.mark.parametrize(
    ("cached", "shareable", "evicted", "expected"),
    [
        (1024, 8192, 0, "could have, had the part that varies stood last"),
        (1024, 8192, 12, "stood last and the KV cache been larger (12 cached blocks were evicted)"),
        (1024, 1024, 0, None),
        (1024, 1024 + 102, 0, None),  # less than one percent of the prompt tokens
        (1024, 1024 + 103, 0, "1,127 could have"),
    ],
)
def test_advice(cached: int, shareable: int, evicted: int, expected: str | None) -> None:
    totals = RequestTotals(num_prompt_tokens=10_240, num_cached_tokens=cached, num_shareable_tokens=shareable)
    sentence = advice(totals, evicted)
    if expected is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert sentence.startswith("1,024 of 10,240 prompt tokens came from the prefix cache; ")
        assert expected in sentence


def test_a_closed_engine_has_no_stats(llm: LLM) -> None:
    assert llm.stats()["prefix_cache"] == {
        "query_tokens": 0,
        "hit_tokens": 0,
        "hit_rate": None,
        "shareable_tokens": 0,
        "advice": None,
    }
    llm.close()
    with pytest.raises(HastenError, match="this LLM is closed"):
        llm.stats()


def run(folder: Path, body: Callable[[AsyncLLM], Awaitable[None]]) -> None:
    async def session() -> None:
        async with AsyncLLM(str(folder), **OPTIONS) as llm:
            await body(llm)

    asyncio.run(asyncio.wait_for(session(), timeout=120))


def test_async_stats_before_between_and_after_requests(tiny: Callable[[str], Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        assert (await llm.stats())["requests"]["added"] == 0  # before any request
        async for delta in llm.stream({"prompt_token_ids": COMMON}, GREEDY.replace(max_tokens=40)):
            if delta.output is None:
                stats = await llm.stats()
                assert stats["requests"]["added"] == 1
                assert stats["requests"]["running"] + sum(stats["requests"]["finished"].values()) == 1
        tasks = [llm.generate({"prompt_token_ids": [own, *COMMON]}, GREEDY) for own in range(3, 9)]
        *outputs, stats = await asyncio.gather(*tasks, llm.stats())
        stats = await llm.stats()
        assert stats["requests"]["finished"]["length"] == 7
        metrics = [output.metrics for output in outputs]
        assert stats["prefix_cache"]["query_tokens"] == 20 + sum(each.num_prompt_tokens for each in metrics)
        assert stats["prefix_cache"]["shareable_tokens"] == sum(each.num_shareable_tokens for each in metrics) == 120

    run(tiny("llama-gqa"), body)


def test_async_stats_are_computed_in_the_thread_of_the_engine(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def record(engine: object) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return {}

    monkeypatch.setattr("hasten.entrypoints.engine_calls.engine_statistics", record)

    async def body(llm: AsyncLLM) -> None:
        assert await llm.stats() == {"result_cache": None}

    run(tiny("llama-gqa"), body)
    assert threads == ["hasten-engine"]


def test_a_cancelled_query_harms_nothing(tiny: Callable[[str], Path]) -> None:
    """The engine is held in a step while the query's task is cancelled."""

    async def body(llm: AsyncLLM) -> None:
        engine, is_held, go_on = llm._client.loaded.engine, threading.Event(), threading.Event()
        step = engine.step

        def held_step() -> object:
            is_held.set()
            assert go_on.wait(timeout=60)
            return step()

        engine.step = held_step  # type: ignore[assignment, method-assign]
        request = asyncio.create_task(llm.generate({"prompt_token_ids": COMMON}, GREEDY))
        assert await asyncio.to_thread(is_held.wait, 60)
        queries = [asyncio.create_task(llm.stats()) for _ in range(3)]
        await asyncio.sleep(0)  # the queries are sent
        queries[1].cancel()
        await asyncio.sleep(0)
        go_on.set()
        assert (await request).finished
        assert queries[1].cancelled()
        assert [(await query)["requests"]["added"] for query in (queries[0], queries[2])] == [1, 1]
        assert (await llm.stats())["requests"]["finished"]["length"] == 1

    run(tiny("llama-gqa"), body)


def test_stats_of_an_engine_that_ends_raise_and_never_hang(tiny: Callable[[str], Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        engine, is_held, go_on = llm._client.loaded.engine, threading.Event(), threading.Event()

        def die() -> object:
            is_held.set()
            assert go_on.wait(timeout=60)
            raise SystemError("planted")

        engine.step = die  # type: ignore[assignment, method-assign]
        request = asyncio.create_task(llm.generate({"prompt_token_ids": COMMON}, GREEDY))
        assert await asyncio.to_thread(is_held.wait, 60)
        pending = asyncio.create_task(llm.stats())
        await asyncio.sleep(0)
        go_on.set()
        for task in (request, pending):
            with pytest.raises(HastenError, match="the engine has ended: got SystemError: planted"):
                await task
        with pytest.raises(HastenError, match="planted"):  # a later query
            await llm.stats()
        await llm.close()
        with pytest.raises(HastenError, match="the engine has ended"):
            await llm.stats()

    run(tiny("llama-gqa"), body)


def test_a_query_and_a_close_at_the_same_time(tiny: Callable[[str], Path]) -> None:
    """Each query is answered or refused, in whatever order the two come."""

    async def session() -> list[object]:
        llm = AsyncLLM(str(tiny("llama-gqa")), **OPTIONS)
        await llm.stats()
        queries = [asyncio.to_thread(lambda: llm._client.call("statistics").result.result(timeout=60)) for _ in range(4)]
        *answers, _ = await asyncio.gather(*queries, llm.close(), return_exceptions=True)
        return list(answers)

    for _ in range(5):
        for answer in asyncio.run(session()):
            assert isinstance(answer, (dict, HastenError)), answer
