"""Interrupts at random moments: nothing is left behind, and the next call is right.

Two cases of three send SIGINT; the third raises ``KeyboardInterrupt`` wherever Python is, as a foreign signal handler may.
"""

from __future__ import annotations

import random
import signal

from hasten import LLM, SamplingParams
from tests.fuzz.report import Report

PROMPT = "def add(a, b):"
LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
SHORT_CALL = 3  # most interrupts would come after it, on a busy machine too


def _raise(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def run(rng: random.Random, cases: int, report: Report) -> None:
    previous = signal.getsignal(signal.SIGALRM)
    try:
        with LLM("demo", dtype="float32", kv_cache_memory="32MiB", max_model_len=256) as llm:
            expected = llm.generate(PROMPT, SHORT, use_tqdm=False)[0].outputs
            for draw in report.each(rng, cases):
                kind, call = draw.choice(["SIGINT", "SIGINT", "raised"]), draw.randrange(5)
                seconds = 10 ** draw.uniform(-4.5, -1.3) * (40 if call == SHORT_CALL else 1)
                report.case = f"{kind} after {seconds:.6f} s"
                signal.signal(signal.SIGALRM, _raise if kind == "raised" else lambda *_: signal.raise_signal(signal.SIGINT))
                try:
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                    try:
                        _call(llm, call)
                        report.outcomes["came first"] += 1
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    report.outcomes["interrupted"] += 1
                if llm.generate(PROMPT, SHORT, use_tqdm=False)[0].outputs != expected:
                    report.fail("the next call got another answer")
                held = sum(allocator.num_held for allocator in llm.engine.scheduler.kv.allocators)
                if held or llm.engine.has_unfinished_requests:
                    report.fail(f"{held} blocks are held afterwards")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _call(llm: LLM, kind: int) -> None:
    if kind == 0:
        llm.generate([PROMPT] * 4, LONG, use_tqdm=False)
    elif kind == 1:
        for _ in llm.stream(PROMPT, LONG.replace(n=3, temperature=1.0)):
            pass
    elif kind == 2:
        llm.generate(PROMPT, LONG.replace(beam_width=4, temperature=1.0), use_tqdm=False)
    elif kind == SHORT_CALL:
        llm.generate(PROMPT, SHORT, use_tqdm=False)
    else:
        llm.score(PROMPT, ["return a + b"] * 60)
