"""Processes that end while requests run: the exit code is the documented one, and nothing crashes."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

from tests.fuzz.report import Report

PROLOGUE = """
import asyncio, sys, threading
from hasten import LLM, AsyncLLM, SamplingParams
params = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
options = dict(kv_cache_memory="16MiB", max_model_len=256, **{options})
kept = []
async def run(llm, number, steps):
    kept.extend(asyncio.create_task(llm.generate("def f(x):", params)) for _ in range(number))
    stream = llm.stream("def g(x):", params)
    kept.append(stream)
    for _ in range(steps):
        await anext(stream)
"""
# The code of each way to end, and its exit code.
ENDS = {
    "main returns": ("asyncio.run(run(AsyncLLM('demo', **options), {number}, {steps}))", 0),
    "a module keeps the engine": ("llm = AsyncLLM('demo', **options)\nasyncio.run(run(llm, {number}, {steps}))", 0),
    "the loop is dropped": (
        "llm = AsyncLLM('demo', **options)\nloop = asyncio.new_event_loop()\nloop.run_until_complete(run(llm, {number}, {steps}))",
        0,
    ),
    "sys.exit": (
        "async def main():\n    await run(AsyncLLM('demo', **options), {number}, {steps})\n    sys.exit(3)\nasyncio.run(main())",
        3,
    ),
    "an exception": (
        "async def main():\n    await run(AsyncLLM('demo', **options), {number}, {steps})\n    1 / 0\nasyncio.run(main())",
        1,
    ),
    "a daemon thread": (
        "llm, begun = LLM('demo', **options), threading.Event()\n"
        "def generate():\n    for _ in llm.stream('def f(x):', params):\n        begun.set()\n"
        "for _ in range({number}):\n    threading.Thread(target=generate, daemon=True).start()\nbegun.wait()",
        0,
    ),
    "a handler of SIGTERM that closes and exits": (
        "import os, signal\nllm, begun = LLM('demo', **options), threading.Event()\n"
        "def generate():\n    for _ in llm.stream('def f(x):', params):\n        begun.set()\n"
        "def stop(*_):\n    llm.close()\n    sys.exit(5)\nsignal.signal(signal.SIGTERM, stop)\n"
        "for _ in range({number}):\n    threading.Thread(target=generate, daemon=True).start()\nbegun.wait()\n"
        "threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGTERM]).start()\n"
        "while True:\n    llm.generate('def h(x):', params, use_tqdm=False)",
        5,
    ),
    "an LLM closed by a finaliser": (
        "import weakref\nllm = LLM('demo', **options)\nkept.append(llm.stream('def f(x):', params))\nnext(kept[0])\n"
        "class Server: pass\nserver = Server()\nweakref.finalize(server, llm.close)",
        0,
    ),
    "an open stream": ("llm = LLM('demo', **options)\nkept.append(llm.stream('def f(x):', params))\nnext(kept[0])", 0),
}
BACKENDS = (
    "{{}}",
    "{{'quantization': 'int8'}}",
    "{{'backend': 'torch', 'dtype': 'float32'}}",
    "{{'speculative_method': 'suffix'}}",
)


def run(rng: random.Random, cases: int, report: Report) -> None:
    names = itertools.cycle(ENDS)
    for draw in report.each(rng, cases):
        name, options = next(names), draw.choice(BACKENDS)
        code, expected = ENDS[name]
        report.case = f"{name}, {options}"
        code = PROLOGUE.replace("{options}", options.format()) + code.format(number=draw.randint(1, 6), steps=draw.randint(1, 8))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
        report.outcomes[f"exit code {done.returncode}"] += 1
        if done.returncode != expected:
            report.fail(f"exit code {done.returncode} instead of {expected}: {done.stderr[-300:]}")
        elif "Fatal" in done.stderr or "Segmentation" in done.stderr:
            report.fail(done.stderr[-300:])
