"""Ctrl-C at any moment: no request is left behind, and the next call is right."""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.exhaustive import repeats

from hasten import LLM, SamplingParams
from hasten.entrypoints.deferred_signals import DEFERRED, DeferredSignals

OPTIONS = {"dtype": "float32", "block_size": 4, "kv_cache_memory": "8MiB", "max_num_seqs": 8, "max_model_len": 256}
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [3 + i, 4, 5 + 2 * i, 6]} for i in range(6)]


@pytest.fixture
def interrupt_after() -> Iterator[Callable[[float], None]]:
    """A function that sends SIGINT to this process after some seconds; 0 calls it off."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored
    previous = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    collected = gc.callbacks[:]
    gc.callbacks.clear()  # those of test libraries: an interrupt that comes within one is lost
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.callbacks[:] = collected
    signal.signal(signal.SIGALRM, previous)
    signal.signal(signal.SIGINT, handler)


def call(llm: LLM, number: int) -> None:
    if number % 3 == 0:
        for _ in llm.stream(PROMPTS[0], LONG):
            pass
    elif number % 3 == 1:
        llm.generate(PROMPTS, LONG, use_tqdm=False)
    else:
        llm.score({"prompt_token_ids": [5, 6, 7] * 20}, [{"token_ids": [8, 9] * 30}] * 400)


def test_interrupts_at_random_moments_leave_nothing(tiny: Callable[[str], Path], interrupt_after: Callable[[float], None]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    (expected,) = llm.generate(PROMPTS[1], SHORT, use_tqdm=False)
    draw, num_interrupted = random.Random(0), 0
    for number in range(repeats("interrupts")):
        try:
            interrupt_after(10 ** draw.uniform(-4.5, -1.5))
            try:
                call(llm, number)
            finally:
                interrupt_after(0)
        except KeyboardInterrupt:
            num_interrupted += 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not llm.engine.has_unfinished_requests and not list(llm._shared._inboxes)
        assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)
        (again,) = llm.generate(PROMPTS[1], SHORT, use_tqdm=False)
        assert again.outputs == expected.outputs
    assert num_interrupted > 0.8 * repeats("interrupts")


def test_other_streams_go_on_after_an_interrupt(tiny: Callable[[str], Path], interrupt_after: Callable[[float], None]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    expected = llm.generate(PROMPTS[0], LONG.replace(max_tokens=40), use_tqdm=False)[0].outputs[0].token_ids
    stream = llm.stream(PROMPTS[0], LONG.replace(max_tokens=40))
    tokens = [*next(stream).token_ids]

    def generate_forever() -> None:
        while True:
            llm.generate(PROMPTS, LONG, use_tqdm=False)

    interrupt_after(0.02)
    with pytest.raises(KeyboardInterrupt):
        generate_forever()
    assert tuple(tokens + [token for delta in stream for token in delta.token_ids]) == expected


@pytest.mark.parametrize("number", DEFERRED)
def test_a_signal_waits_for_the_check_and_reaches_the_handler_that_was_there(number: signal.Signals) -> None:
    received: list[int] = []
    previous = signal.signal(number, lambda number, _: received.append(number))
    try:
        with DeferredSignals() as signals:
            signal.raise_signal(number)
            assert not received
            signals.check()
            assert received == [number]
            signal.raise_signal(number)
        assert received == [number] * 2
        with DeferredSignals() as signals:
            signals.check()
        assert received == [number] * 2
    finally:
        signal.signal(number, previous)
