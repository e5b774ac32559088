"""The thread pool at its edges: one CPU, a fork, two engines at once, more threads than cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from hasten import LLM, SamplingParams
from hasten.ops.cpu import cores

PROMPTS = ["def add(a, b):", "import os\n", "class Queue:", "for i in range("]
AVAILABLE_CORES = cores.available_cores
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pool have more threads than this machine has cores, which an engine never asks for."""
    monkeypatch.setattr(cores, "available_cores", lambda **_: 16)


def engine(threads: int) -> LLM:
    return LLM("demo", dtype="float32", max_model_len=64, kv_cache_memory="8MiB", threads=threads, prefix_caching=False)


def generate(llm: LLM) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def in_child(work: Callable[[], bool]) -> int:
    """Run ``work`` in a forked child; return its exit status, which is 0 if ``work`` returns true."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_one_cpu_gives_the_same_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    expected = generate(engine(2))

    def work() -> bool:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        if generate(engine(2)) != expected:
            return False
        monkeypatch.setattr(cores, "available_cores", AVAILABLE_CORES)
        return LLM("demo", max_model_len=64).describe()["threads"] == 1

    assert in_child(work) == 0


def test_an_engine_continues_in_a_forked_child_and_in_its_parent() -> None:
    llm = engine(3)
    expected = generate(llm)
    assert in_child(lambda: generate(llm) == expected) == 0
    assert generate(llm) == expected


def test_two_engines_run_concurrently() -> None:
    engines = [engine(2), engine(3)]
    expected = generate(engines[0])
    outputs: dict[int, list[list[tuple[int, ...]]]] = {0: [], 1: []}

    def work(which: int) -> None:
        for _ in range(5):
            outputs[which].append(generate(engines[which]))

    workers = [threading.Thread(target=work, args=(which,)) for which in outputs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(outputs[which] == [expected] * 5 for which in outputs)


def test_more_threads_than_cores_give_the_same_output() -> None:
    assert generate(engine(16)) == generate(engine(1))
