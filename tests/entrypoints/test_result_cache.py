"""The result cache in front of ``LLM`` and ``AsyncLLM``: what it returns, what it passes on, and what it never keeps."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, AsyncLLM, Delta, PrefixPin, RequestOutput, SamplingParams
from hasten.core.errors import InvalidOption
from hasten.entrypoints.wiring.result_cache_setup import ResultCacheWarning

SMALL: dict[str, Any] = {"max_model_len": 256, "kv_cache_memory": "16MiB", "threads": 1}
GREEDY = SamplingParams(temperature=0, max_tokens=24, logprobs=2)
PROMPT = "def binary_search("


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def plain() -> LLM:
    """An engine without a result cache."""
    return LLM("demo", **SMALL)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM("demo", result_cache="memory:", **SMALL) as llm:
        yield llm


def stats(llm: LLM) -> dict[str, Any]:
    return llm._loaded.result_cache.stats()


def without_output(deltas: list[Delta]) -> list[Delta]:
    return [dataclasses.replace(delta, request_id="", output=None) for delta in deltas]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0, "seed": 5, "n": 3},
        {"beam_width": 3, "n": 2, "temperature": 1.0},
        {"stop": ("return",), "repetition_penalty": 1.2},
    ],
    ids=["greedy", "seeded", "beams", "stop"],
)
def test_a_hit_is_what_the_engine_would_compute(llm: LLM, plain: LLM, settings: dict[str, Any]) -> None:
    params = GREEDY.replace(**settings)
    expected = plain.generate(PROMPT, params, use_tqdm=False)[0]
    computed, found = (llm.generate(PROMPT, params, use_tqdm=False)[0] for _ in range(2))
    steps = llm.engine.stats.num_steps
    assert computed.outputs == found.outputs == expected.outputs
    assert (found.prompt, found.prompt_token_ids, found.finished) == (PROMPT, expected.prompt_token_ids, True)
    assert not computed.metrics.from_result_cache and found.metrics.from_result_cache
    assert found.metrics.num_output_tokens == expected.metrics.num_output_tokens
    assert llm.generate(PROMPT, params, use_tqdm=False)[0].outputs == expected.outputs and llm.engine.stats.num_steps == steps


def test_a_streamed_hit_replays_the_deltas(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, seed=3, n=2, max_tokens=20, logprobs=1)
    computed, found = list(llm.stream(PROMPT, params)), list(llm.stream(PROMPT, params))
    assert without_output(found) == without_output(computed) and len(found) > 3
    assert found[-1].output is not None and found[-1].output.metrics.from_result_cache
    assert stats(llm)["hits"] == 1


def test_what_is_not_determined_passes_and_is_counted(llm: LLM) -> None:
    sampled = SamplingParams(temperature=1.0, max_tokens=8)
    lossy = SamplingParams(temperature=1.0, seed=1, max_tokens=8, acceptance="typical")
    exits = SamplingParams(temperature=0, max_tokens=8, exit_rule="fixed", exit_layer=4)
    for params in (sampled, sampled, lossy, lossy, exits, exits):
        output = llm.generate(PROMPT, params, use_tqdm=False)[0]
        assert not output.metrics.from_result_cache
    prompt, pins = {"prompt_token_ids": list(range(40))}, [PrefixPin(num_tokens=32, seconds=60.0)]
    for _ in range(2):
        assert not llm.generate(prompt, GREEDY, use_tqdm=False, pins=pins)[0].metrics.from_result_cache
    assert llm.stats()["pins"]["hits"] == 1
    found = stats(llm)
    assert found["passed"] == {"no_seed": 2, "lossy_acceptance": 2, "early_exit": 2, "pins": 2}
    assert (found["hits"], found["misses"], found["stored"]) == (0, 0, 0)


def test_equal_prompts_of_one_call_are_computed_once(llm: LLM, plain: LLM) -> None:
    prompts = [PROMPT, "import ", PROMPT, PROMPT]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs for output in outputs] == [o.outputs for o in plain.generate(prompts, GREEDY, use_tqdm=False)]
    assert stats(llm)["shared"] == 2 and len({output.request_id for output in outputs}) == 4


def test_tenants_share_no_results(llm: LLM) -> None:
    for tenant in ("a", "b", ""):
        assert not llm.generate(PROMPT, GREEDY, use_tqdm=False, cache_salt=tenant)[0].metrics.from_result_cache
    assert llm.generate(PROMPT, GREEDY, use_tqdm=False, cache_salt="a")[0].metrics.from_result_cache


def test_a_stream_that_is_closed_is_not_stored(llm: LLM) -> None:
    stream = llm.stream(PROMPT, GREEDY)
    next(stream)
    stream.close()
    assert not llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].metrics.from_result_cache
    assert stats(llm)["hits"] == 0


def test_results_survive_a_restart_and_are_those_of_their_engine(plain: LLM, tmp_path: Path) -> None:
    address = f"sqlite:{tmp_path / 'results.sqlite'}"
    expected: dict[str, RequestOutput] = {}
    variants: dict[str, dict[str, Any]] = {
        "bfloat16": {},
        "int8": {"quantization": "int8"},
        "int8 kv": {"kv_cache_dtype": "int8"},
        "shorter": {"max_model_len": 128},
    }
    for is_second in (False, True):
        for name, options in variants.items():
            with LLM("demo", result_cache=address, **{**SMALL, **options}) as llm:
                output = llm.generate(PROMPT, GREEDY.replace(max_tokens=None, stop=("\n\n\n",)), use_tqdm=False)[0]
                assert output.metrics.from_result_cache == is_second
                assert expected.setdefault(name, output).outputs == output.outputs


def test_results_of_other_pytorch_kernels_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They round log-probabilities differently, and native kernels do not compute these."""
    outputs = []
    for kernels in ("first", "second", "first"):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda kernels=kernels: kernels)
        with LLM("demo", result_cache=f"sqlite:{tmp_path / 'results.sqlite'}", **SMALL) as llm:
            outputs.append(llm.generate(PROMPT, GREEDY, use_tqdm=False)[0])
    assert [output.metrics.from_result_cache for output in outputs] == [False, False, True]


def test_a_flipped_byte_is_a_miss(tmp_path: Path) -> None:
    file = tmp_path / "results.sqlite"
    outputs = []
    for run in range(3):
        with LLM("demo", result_cache=f"sqlite:{file}", **SMALL) as llm:
            outputs.append(llm.generate(PROMPT, GREEDY, use_tqdm=False)[0])
            assert stats(llm)["damaged"] == (run == 1)
        if run == 0:
            damage_values(file)
    assert [output.metrics.from_result_cache for output in outputs] == [False, False, True]
    assert len({output.outputs for output in outputs}) == 1


def damage_values(file: Path) -> None:
    """Flip a bit of every value in a SQLite file."""
    with sqlite3.connect(file) as database:
        for number, record in database.execute("SELECT record_id, record FROM records").fetchall():
            damaged = bytearray(record)
            damaged[-40] ^= 1
            database.execute("UPDATE records SET record = ? WHERE record_id = ?", (bytes(damaged), number))
    database.close()


def test_a_backend_whose_results_depend_on_the_batch_keeps_nothing() -> None:
    with pytest.warns(ResultCacheWarning, match="no effect"):
        llm = LLM("demo", result_cache="memory:", backend="torch", **SMALL)
    with llm:
        for _ in range(2):
            assert not llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].metrics.from_result_cache
        assert stats(llm)["passed"] == {"batch_dependent_backend": 2} and stats(llm)["off_because"]


@pytest.mark.parametrize("address", ["files:x", "sqlite:/dev/null", "redis//x", ""])
def test_an_address_that_cannot_be_used_is_refused(address: str) -> None:
    with pytest.raises(InvalidOption, match="result_cache"):
        LLM("demo", result_cache=address, **SMALL)


def test_a_server_that_is_down_fails_no_request(plain: LLM) -> None:
    expected = plain.generate(PROMPT, GREEDY, use_tqdm=False)[0]
    with LLM("demo", result_cache="redis://127.0.0.1:1/0", **SMALL) as llm:
        for _ in range(8):
            assert llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs == expected.outputs
            llm._loaded.result_cache.flush()  # else a result that waits to be written is found
        found = stats(llm)
        assert found["misses"] == 8 and found["hits"] == 0
        assert found["store"]["failures"] and found["store"]["skipped"], "the circuit breaker has not opened"


def test_a_broken_value_of_the_store_fails_no_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0]

    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    llm._loaded.result_cache.flush()
    monkeypatch.setattr(llm._loaded.result_cache._store.store, "get", fail)
    assert llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs == expected.outputs


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_signal_waits_for_the_end_of_a_lookup(llm: LLM, is_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler may close the LLM, which takes the locks of the cache."""
    store = llm._loaded.result_cache._store.store
    held: list[bool] = []

    def get(key: bytes) -> None:
        with store._lock:
            signal.raise_signal(signal.SIGUSR1)
            assert not held

    monkeypatch.setattr(store, "get", get)
    before = signal.signal(signal.SIGUSR1, lambda *_: held.append(store._lock.locked()))
    try:
        params = GREEDY.replace(max_tokens=1)
        assert list(llm.stream(PROMPT, params)) if is_stream else llm.generate(PROMPT, params, use_tqdm=False)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert held == [False]


def test_a_hit_waits_for_no_step_of_another_thread(llm: LLM) -> None:
    llm.generate(PROMPT, GREEDY, use_tqdm=False)
    found: list[RequestOutput] = []
    thread = threading.Thread(target=lambda: found.extend(llm.generate([PROMPT] * 2, GREEDY, use_tqdm=False)))
    with llm._shared.exclusive():  # as a step does
        thread.start()
        thread.join(30)
        assert len(found) == 2 and all(output.metrics.from_result_cache for output in found)


def test_64_equal_tasks_compute_once(plain: LLM) -> None:
    expected = plain.generate(PROMPT, GREEDY, use_tqdm=False)[0]

    async def run() -> None:
        async with AsyncLLM("demo", result_cache="memory:", **SMALL) as llm:
            outputs = await asyncio.gather(*(llm.generate(PROMPT, GREEDY) for _ in range(64)))
            assert all(output.outputs == expected.outputs for output in outputs)
            cache = llm._client.loaded.result_cache
            assert cache is not None and cache.stats()["shared"] == 63
            again = await llm.generate(PROMPT, GREEDY)
            assert again.metrics.from_result_cache and again.prompt == PROMPT
            deltas = [delta async for delta in llm.stream(PROMPT, GREEDY)]
            assert "".join(delta.text for delta in deltas) == expected.outputs[0].text

    asyncio.run(run())


def test_lookups_of_a_slow_store_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(16)  # breaks unless 16 lookups are in the store at a time

    def get(key: bytes) -> None:
        together.wait(30)

    async def run() -> None:
        async with AsyncLLM("demo", result_cache=f"sqlite:{tmp_path / 'results.sqlite'}", **SMALL) as llm:
            assert llm._client.loaded.result_cache is not None
            monkeypatch.setattr(llm._client.loaded.result_cache._store.store, "get", get)
            await asyncio.gather(*(llm.generate(f"# {number}", GREEDY.replace(max_tokens=1)) for number in range(16)))

    asyncio.run(run())
    assert not together.broken


def test_cancelled_tasks_take_no_other_along(plain: LLM, tmp_path: Path) -> None:
    """Few distinct requests, many tasks, random cancels: every task that stays gets its own answer."""
    rounds = [[f"# {number}{text}" for text in ("import os", "class A", "def f(")] for number in range(12)]
    params = [GREEDY.replace(max_tokens=n) for n in (4, 12)]
    flat = [(prompt, param) for prompts in rounds for prompt in prompts for param in params]
    outputs = plain.generate([prompt for prompt, _ in flat], [param for _, param in flat], use_tqdm=False)
    expected = {(prompt, param.max_tokens): output.outputs for (prompt, param), output in zip(flat, outputs, strict=True)}
    draw = random.Random(4)

    async def run() -> tuple[int, int]:
        async with AsyncLLM("demo", result_cache=f"sqlite:{tmp_path / 'results.sqlite'}", **SMALL) as llm:
            kept = cancelled = 0
            for prompts in rounds:
                wanted = [(draw.choice(prompts), draw.choice(params)) for _ in range(16)]
                tasks = [asyncio.create_task(llm.generate(prompt, param)) for prompt, param in wanted]
                for task in draw.sample(tasks, 6):
                    for _ in range(draw.randint(0, 20)):
                        await asyncio.sleep(0)
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                for (prompt, param), result in zip(wanted, results, strict=True):
                    if isinstance(result, asyncio.CancelledError):
                        cancelled += 1
                        continue
                    assert isinstance(result, RequestOutput), result
                    assert result.outputs == expected[prompt, param.max_tokens]
                    kept += 1
            return kept, cancelled

    kept, cancelled = asyncio.run(run())
    assert kept >= 100 and cancelled > 20
