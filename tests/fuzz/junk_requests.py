"""Junk in requests: hasten answers, or refuses them by name, and no other request notices.

A case draws junk for some fields of a request, of its prompt, its conversation or the arguments of a call. It goes to an
``LLM`` or, beside two ordinary requests, to an ``AsyncLLM``. The ordinary requests get the tokens that they get alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import reprlib
import warnings
from typing import Any

import numpy as np

from hasten import LLM, AsyncLLM, HastenError, SamplingParams
from tests.fuzz.report import Report

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "kv_cache_memory": "16MiB",
    "max_model_len": 128,
    "max_num_seqs": 16,
    "block_size": 8,
}
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
CANARY = "def add(a, b):"
FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))
MAX_MESSAGE = 2_000


class Opaque:
    """An object of no known type, whose repr raises."""

    def __repr__(self) -> str:
        raise ValueError("no repr")


def junk(draw: random.Random) -> Any:
    """Return a value that few fields allow."""
    kinds = [
        lambda: draw.choice([None, True, False, -1, 0, 1, 2, 3, 64, 2**31, 2**32 + 16, 2**63, 10**400, -(10**400)]),
        lambda: draw.choice([0.0, -0.0, 0.5, 1.5, float("nan"), float("inf"), -float("inf"), 5e-324, 1e308, 1j]),
        lambda: draw.choice(["", "x", "2", "none", "auto", "fixed", "\ud800", "\x00", "\x1b[31m", "é" * 300, "x" * 10**6, "never"]),
        lambda: draw.choice([b"", b"x", bytearray(b"x"), object, Opaque(), Ellipsis, range(3), iter(()), {1, 2}, frozenset()]),
        lambda: draw.choice([np.int64(3), np.float32(0.5), np.bool_(True), np.array([1, 2]), np.array(5)]),
        lambda: [junk(draw) for _ in range(draw.randrange(4))],
        lambda: tuple(junk(draw) for _ in range(draw.randrange(4))),
        lambda: {_key(draw): junk(draw) for _ in range(draw.randrange(3))},
        lambda: [draw.choice([1, "x", "a b", 5.0])] * draw.choice([1, 20, 3_000, 100_000]),
        lambda: _nested(draw.choice([3, 500, 50_000])),
    ]
    return draw.choice(kinds)()


def _key(draw: random.Random) -> Any:
    return draw.choice([0, 1, -1, "x", "1", None, 2**40, 1.5, "type", "text", "role", "content", "prompt_token_ids"])


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def run(rng: random.Random, cases: int, report: Report) -> None:
    with warnings.catch_warnings(), LLM("demo", **OPTIONS) as llm:
        warnings.simplefilter("ignore")
        expected = llm.generate(CANARY, GREEDY, use_tqdm=False)[0].outputs
        server = AsyncLLM("demo", **OPTIONS)
        with asyncio.Runner() as loop:
            for draw in report.each(rng, cases):
                call = draw.choice(CALLS)
                try:
                    if draw.random() < 0.3:
                        outputs = loop.run(_beside_others(server, draw, report))
                    else:
                        call(llm, draw, report)
                        outputs = [llm.generate(CANARY, GREEDY, use_tqdm=False)[0].outputs]
                    report.outcomes["answered"] += 1
                except HastenError as error:
                    outputs = [llm.generate(CANARY, GREEDY, use_tqdm=False)[0].outputs]
                    report.outcomes[type(error).__name__] += 1
                    _check_message(error, report)
                except Exception as error:
                    outputs = [expected]
                    report.fail(f"{type(error).__name__}: {str(error)[:200]}")
                if any(output != expected for output in outputs):
                    report.fail("an ordinary request got another answer")
                held = sum(allocator.num_held for allocator in llm.engine.scheduler.kv.allocators)
                if held or llm.engine.has_unfinished_requests:
                    report.fail(f"{held} blocks are held afterwards")
            loop.run(server.close())


def _check_message(error: HastenError, report: Report) -> None:
    message = str(error)
    if len(message) > MAX_MESSAGE or any(ord(character) < 32 or 127 <= ord(character) < 160 for character in message):
        report.fail(f"a message of {len(message)} characters, or with control characters: {message[:100]!r}")


def _settings(draw: random.Random, report: Report) -> SamplingParams:
    settings = {name: junk(draw) for name in draw.sample(FIELDS, draw.randint(1, 3))}
    report.case = "settings " + ", ".join(f"{name}={_show(value)}" for name, value in settings.items())
    return SamplingParams.from_dict({"max_tokens": 3, **settings})


def _show(value: object) -> str:
    try:
        return reprlib.repr(value)[:60]
    except Exception as error:
        return f"a value whose repr raises {type(error).__name__}"


def _prompt(draw: random.Random, report: Report) -> Any:
    alphabet = ["def ", "\n", "é", "😀", "\ud83d", "\x00", " ", "<|", "|>", "﷽", "\u202e", "a" * 50]
    prompt = draw.choice(
        [
            lambda: "".join(draw.choice(alphabet) for _ in range(draw.choice([0, 1, 30, 3_000]))),
            lambda: {"prompt_token_ids": junk(draw)},
            lambda: {"prompt_token_ids": [draw.choice([0, 5, 8191, 8192, -1, 2**33, 10**400]) for _ in range(5)]},
            lambda: junk(draw),
        ]
    )()
    if isinstance(prompt, (list, tuple)):
        prompt = prompt[:20]  # a list is a batch of prompts, and a long one takes its time
    report.case += f" prompt {_show(prompt)}"
    return prompt


def _generate_settings(llm: LLM, draw: random.Random, report: Report) -> None:
    llm.generate(CANARY, _settings(draw, report), use_tqdm=False)


def _generate_prompt(llm: LLM, draw: random.Random, report: Report) -> None:
    llm.generate(_prompt(draw, report), GREEDY, use_tqdm=False)


def _generate_arguments(llm: LLM, draw: random.Random, report: Report) -> None:
    name = draw.choice(["priorities", "cache_salt", "sampling_params"])
    value = junk(draw)
    report.case = f"generate {name}={_show(value)}"
    llm.generate(CANARY, **{"sampling_params": GREEDY, name: value}, use_tqdm=False)


def _chat(llm: LLM, draw: random.Random, report: Report) -> None:
    parts = [{"type": "text", "text": draw.choice(["hi", "\ud800", junk(draw)])}, junk(draw)]
    content = draw.choice(["hi", junk(draw), parts[:1], parts])
    message = draw.choice([{"role": "user", "content": content}, {"role": junk(draw), "content": "x"}, junk(draw)])
    names = ("tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "enable_thinking")
    extra = draw.choice([{}, {}, {draw.choice(names): junk(draw)}, {"chat_template": "x"}])
    report.case = f"chat {_show(message)} {_show(extra)}"
    llm.chat([message], GREEDY, use_tqdm=False, **extra)


def _score(llm: LLM, draw: random.Random, report: Report) -> None:
    continuations = draw.choice([[junk(draw)], junk(draw), ["x", junk(draw)], [{"token_ids": junk(draw)}]])
    continuations = continuations[:20] if isinstance(continuations, (list, tuple)) else continuations  # many take their time
    report.case = f"score {_show(continuations)}"
    prompt = draw.choice([CANARY, _prompt(draw, report)])
    if draw.random() < 0.5:
        llm.score(prompt, continuations)
    else:
        llm.choose(prompt, continuations, normalize=draw.choice(["mean", "sum", junk(draw)]))


def _stream(llm: LLM, draw: random.Random, report: Report) -> None:
    for number, _ in enumerate(llm.stream(CANARY, _settings(draw, report))):
        if number == draw.randrange(4):
            break


CALLS = (_generate_settings, _generate_settings, _generate_prompt, _generate_arguments, _chat, _score, _stream)


async def _beside_others(server: AsyncLLM, draw: random.Random, report: Report) -> list[Any]:
    """Send junk beside two ordinary requests; return the answers of those."""

    async def junk_request() -> None:
        prompt = _prompt(draw, report) if draw.random() < 0.5 else CANARY
        settings = GREEDY if draw.random() < 0.3 else _settings(draw, report)
        await server.generate(
            prompt, settings, **{name: junk(draw) for name in draw.sample(["priority", "cache_salt"], draw.choice([0, 0, 1]))}
        )

    ordinary = [asyncio.create_task(server.generate(CANARY, GREEDY)) for _ in range(2)]
    try:
        await junk_request()
    except HastenError as error:
        _check_message(error, report)
    return [(await task).outputs for task in ordinary]
