"""Several threads on one ``LLM``, and several event loops on one ``AsyncLLM``: every answer is that of the same call alone."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.exhaustive import repeats

from hasten import LLM, AsyncLLM, HastenError, SamplingParams
from hasten.entrypoints.fair_lock import FairLock
from hasten.entrypoints.shared_engine import Inbox

OPTIONS = {"dtype": "float32", "block_size": 4, "kv_cache_memory": "8MiB", "max_num_seqs": 8, "max_model_len": 128, "seed": 0}
NUM_THREADS = 6
PROMPTS = [{"prompt_token_ids": [3 + i % 5, 4, 5 + i, 6, 7] * (1 + i % 3)} for i in range(24)]
SETTINGS = [
    SamplingParams(temperature=0, max_tokens=9, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=7, max_tokens=12),
    SamplingParams(temperature=0.8, seed=8, n=3, max_tokens=6, logprobs=2),
    SamplingParams(temperature=1.0, beam_width=3, max_tokens=6, ignore_eos=True),
]


def call(llm: LLM, number: int) -> Any:
    """Make one of five kinds of calls; the same number always makes the same call."""
    draw = random.Random(number)
    prompt, params = draw.choice(PROMPTS), draw.choice(SETTINGS)
    kind = draw.randrange(5)
    if kind == 0:
        return [output.outputs for output in llm.generate([prompt, draw.choice(PROMPTS)], params, use_tqdm=False)]
    if kind == 1:
        return [delta.output.outputs for delta in llm.stream(prompt, params) if delta.output is not None]
    if kind == 2:
        return next(iter(llm.stream(prompt, params))).token_ids  # the caller leaves after the first delta
    if kind == 3:
        return [score.logprobs for score in llm.score(prompt, [{"token_ids": [5, 6]}, {"token_ids": [7]}])]
    return llm.choose(prompt, [{"token_ids": [i]} for i in range(5, 9)]).index


def test_threads_get_the_answers_of_the_same_calls_alone(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    count = repeats("threads") // NUM_THREADS
    expected = [call(llm, number) for number in range(NUM_THREADS * count)]

    def serve(thread: int) -> list[Any]:
        return [call(llm, number) for number in range(thread * count, (thread + 1) * count)]

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        answers = [answer for own in threads.map(serve, range(NUM_THREADS)) for answer in own]
    assert answers == expected
    assert not llm.engine.has_unfinished_requests
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)


def test_without_the_lock_threads_disturb_each_other(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a step that another thread enters."""
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    inside, most = 0, 0
    step = llm.engine._step

    def counted(deltas: list[Any]) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            step(deltas)
        finally:
            inside -= 1

    monkeypatch.setattr(llm.engine, "_step", counted)

    def serve() -> None:
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            list(threads.map(lambda i: llm.generate(PROMPTS[i], SETTINGS[0].replace(max_tokens=60), use_tqdm=False), range(6)))

    serve()
    assert most == 1
    monkeypatch.setattr(FairLock, "acquire", lambda self: None)
    monkeypatch.setattr(FairLock, "release", lambda self: None)
    try:
        serve()
    except Exception:
        return  # they met, and broke the engine
    assert most > 1


def test_a_fair_lock_serves_threads_in_turn() -> None:
    lock, order = FairLock(), list[int]()
    lock.acquire()

    def take(number: int) -> None:
        lock.acquire()
        order.append(number)
        lock.release()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        while len(lock._waiting) <= number:
            pass
    assert not lock.try_acquire()
    lock.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert lock.try_acquire()


def test_a_closed_stream_ends_while_other_threads_generate(tiny: Callable[[str], Path]) -> None:
    """The lock is never free then: the threads pass it on to each other."""
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    endless = SETTINGS[0].replace(max_tokens=110)
    stop = threading.Event()

    def generate() -> None:
        while not stop.is_set():
            llm.generate(PROMPTS[1], endless, use_tqdm=False)

    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            threads.submit(generate)
        for _ in range(5):
            stream = llm.stream(PROMPTS[0], endless)
            request_id = next(stream).request_id
            stream.close()
            next(llm.stream(PROMPTS[2], SETTINGS[0]))  # at least one step later
            assert request_id not in llm.engine._states
        stop.set()
    assert not llm.engine.has_unfinished_requests


def test_a_thread_that_an_exception_takes_out_of_the_queue_does_not_keep_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FairLock()
    lock.acquire()

    class Turn:
        """A lock whose second acquisition raises, as a signal handler does."""

        def __init__(self) -> None:
            self.calls = 0

        def acquire(self) -> None:
            self.calls += 1
            if self.calls > 1:
                raise KeyboardInterrupt

        def release(self) -> None: ...

    raised: list[str] = []

    def wait() -> None:
        try:
            lock.acquire()
        except KeyboardInterrupt:
            raised.append("waiting")

    with monkeypatch.context() as patch:
        others = {name: getattr(threading, name) for name in ("get_ident", "current_thread", "main_thread")}
        patch.setattr("hasten.entrypoints.fair_lock.threading", SimpleNamespace(Lock=Turn, **others))
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert raised == ["waiting"]
    lock.release()
    assert lock.try_acquire()
    with pytest.raises(HastenError, match="by the same thread"):
        lock.acquire()


def test_an_inbox_that_is_dropped_ends_its_request(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    stream = llm.stream(PROMPTS[0], SETTINGS[0].replace(max_tokens=60))
    next(stream)
    assert llm.engine.has_unfinished_requests
    del stream
    assert not llm.engine.has_unfinished_requests
    inbox = Inbox([llm._request(PROMPTS[0], SETTINGS[0].replace(max_tokens=100))])
    llm._shared.open(inbox)
    del inbox  # as if an interrupt had kept its owner from leaving in order
    llm.generate(PROMPTS[1], SETTINGS[0], use_tqdm=False)
    assert not llm.engine.has_unfinished_requests


def test_a_closed_llm_says_so(tiny: Callable[[str], Path]) -> None:
    with LLM(str(tiny("llama-gqa")), **OPTIONS) as llm:
        stream = llm.stream(PROMPTS[0], SETTINGS[0])
        next(stream)
    llm.close()
    calls: list[Callable[[], object]] = [
        lambda: next(stream),
        lambda: llm.generate(PROMPTS[0], SETTINGS[0]),
        lambda: llm.score(PROMPTS[0], [{"token_ids": [5]}]),
        lambda: llm.engine,
        llm.reset_prefix_cache,
        llm.describe,
    ]
    for closed in calls:
        with pytest.raises(HastenError, match="this LLM is closed"):
            closed()


def test_two_event_loops_with_random_cancels_get_exact_answers(tiny: Callable[[str], Path]) -> None:
    folder = str(tiny("llama-gqa"))
    with LLM(folder, **OPTIONS) as reference:
        expected = [[o.outputs for o in reference.generate(PROMPTS, params, use_tqdm=False)] for params in SETTINGS]
    llm = AsyncLLM(folder, **OPTIONS)
    count = repeats("async requests") // 2

    async def one(draw: random.Random, wrong: list[str]) -> int:
        prompt, settings = draw.randrange(len(PROMPTS)), draw.randrange(len(SETTINGS))
        task = asyncio.create_task(llm.generate(PROMPTS[prompt], SETTINGS[settings]))
        if draw.random() < 0.3:
            for _ in range(draw.randrange(8)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            output = await task
        except asyncio.CancelledError:
            return 0
        if output.outputs != expected[settings][prompt]:
            wrong.append(f"{PROMPTS[prompt]} {SETTINGS[settings]}")
        return 1

    async def session(seed: int) -> tuple[int, list[str]]:
        draw, wrong, finished = random.Random(seed), list[str](), 0
        for _ in range(0, count, 25):
            finished += sum(await asyncio.gather(*(one(draw, wrong) for _ in range(25))))
        return finished, wrong

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda seed: asyncio.run(session(seed)), range(2)))
    assert [wrong for _, wrong in results] == [[], []]
    assert sum(finished for finished, _ in results) > count
    engine = llm._client.loaded.engine

    async def idle() -> None:
        while engine.has_unfinished_requests or not llm._client._commands.empty():
            await asyncio.sleep(0.001)
        await llm.close()

    asyncio.run(asyncio.wait_for(idle(), timeout=60))
    assert all(allocator.num_held == 0 for allocator in engine.scheduler.kv.allocators)
    assert llm._router.open_requests == []


def test_the_next_event_loop_goes_on_where_a_closed_one_left_requests(tiny: Callable[[str], Path]) -> None:
    llm = AsyncLLM(str(tiny("llama-gqa")), **OPTIONS)
    endless = SETTINGS[0].replace(max_tokens=120)

    async def leave() -> None:
        stream = llm.stream(PROMPTS[0], endless)
        await anext(stream)
        left.append(stream)

    left: list[object] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()  # without a chance for the stream to end its request

    async def go_on() -> None:
        outputs = await asyncio.gather(*(llm.generate(prompt, SETTINGS[0]) for prompt in PROMPTS[:5]))
        assert all(output.finished and output.error is None for output in outputs)
        while llm._client.loaded.engine.has_unfinished_requests:
            await asyncio.sleep(0.001)
        await llm.close()

    asyncio.run(asyncio.wait_for(go_on(), timeout=60))
    assert llm._router.open_requests == []


def test_the_collector_does_not_wait_for_a_lock_that_a_thread_has_kept(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    shared = llm._shared
    keeper = threading.Thread(target=shared._lock.acquire)
    keeper.start()
    keeper.join()
    collected = weakref.ref(shared)
    del llm, shared
    gc.collect()
    assert collected() is None
    lock = FairLock()
    keeper = threading.Thread(target=lock.acquire)
    keeper.start()
    keeper.join()
    lock.halt()  # at the end of the interpreter, too
