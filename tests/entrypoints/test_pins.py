"""Pins as a user sees them: requests that pin, ``pin_kv`` and ``unpin_kv``, refused pins, and scores beside pins."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, AsyncLLM, HastenError, InvalidRequest, PrefixPin, SamplingParams
from hasten.core.errors import CapacityError

OPTIONS: dict[str, Any] = {"dtype": "float32", "threads": 1, "block_size": 4, "kv_cache_memory": "2MiB", "max_model_len": 96}
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
ONE = SamplingParams(temperature=0, max_tokens=1)
NAMES = ["llama-gqa", "qwen3-mixed-window"]


def ids(seed: object, count: int) -> list[int]:
    generator = random.Random(repr(seed))
    return [generator.randrange(3, 96) for _ in range(count)]


def prompt(token_ids: list[int]) -> dict[str, Any]:
    return {"prompt_token_ids": token_ids}


def cached(llm: LLM, token_ids: list[int], **settings: Any) -> int:
    """Return how many tokens of a prompt are in the prefix cache."""
    return llm.generate(prompt(token_ids), ONE, use_tqdm=False, **settings)[0].metrics.num_cached_tokens


def flood(llm: LLM) -> None:
    """Evict every cached block."""
    for allocator in llm.engine.scheduler.kv.allocators:
        for block in [allocator.allocate() for _ in range(allocator.num_available)]:
            allocator.release(block)


class Clock:
    def __init__(self, llm: LLM) -> None:
        self.now = 1000.0
        llm.engine.clock = lambda: self.now


@pytest.mark.parametrize("name", NAMES)
def test_a_pinned_prefix_stays_until_its_time_is_over_and_changes_no_token(name: str, tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny(name)), **OPTIONS)
    clock, stem = Clock(llm), ids("stem", 22)
    (expected,) = llm.generate(prompt([*stem, 7, 8]), GREEDY, use_tqdm=False)
    llm.reset_prefix_cache()
    pins = (PrefixPin(num_tokens=22, seconds=300), PrefixPin(num_tokens=3, seconds=300))
    llm.generate(prompt(stem), ONE, use_tqdm=False, pins=pins)
    flood(llm)
    clock.now += 299
    (actual,) = llm.generate(prompt([*stem, 7, 8]), GREEDY, use_tqdm=False)
    assert actual.metrics.num_cached_tokens == 20 and actual.outputs == expected.outputs
    flood(llm)
    clock.now += 299
    assert cached(llm, [*stem, 9]) == 20, "the hit has extended the pin"
    clock.now += 300
    cached(llm, [1])
    flood(llm)
    assert cached(llm, stem) == 0
    counts = {event: count for event, count in llm.engine.scheduler.kv.pins.counts.items() if count}
    assert counts == {"set": 1, "hits": 2, "expired": 1}


def test_every_way_to_generate_takes_pins(tiny: Callable[[str], Path]) -> None:
    llm = LLM("demo", **{**OPTIONS, "max_model_len": 512, "kv_cache_memory": "16MiB"})
    table = llm.engine.scheduler.kv.pins
    messages = [{"role": "user", "content": "Say what a stack is, in a few words."}]
    pins = [PrefixPin(num_tokens=8, seconds=60)]
    calls: list[Callable[[], object]] = [
        lambda: llm.generate(["def push(self, item):\n    x", "import os, sys, re\nimport a"], ONE, use_tqdm=False, pins=pins),
        lambda: list(llm.stream("class Queue:\n    def pop(self):", ONE, pins=pins)),
        lambda: llm.chat(messages, ONE, use_tqdm=False, pins=pins),
        lambda: list(llm.stream_chat([{**messages[0], "content": "And what is a heap?"}], ONE, pins=pins)),
    ]
    seen = []
    for call in calls:
        call()
        seen.append((table.counts["set"], table.counts["refreshed"]))
    assert [sum(each) for each in seen] == [2, 3, 4, 5] and seen[1] == (3, 0)


def test_every_way_to_generate_asynchronously_takes_pins() -> None:
    async def session() -> None:
        async with AsyncLLM("demo", **{**OPTIONS, "max_model_len": 512, "kv_cache_memory": "16MiB"}) as llm:
            table, pins = llm._client.loaded.engine.scheduler.kv.pins, [PrefixPin(num_tokens=8, seconds=60)]
            await llm.generate("def push(self, item):\n    x", ONE, pins=pins)
            assert table.counts["set"] == 1
            assert [delta async for delta in llm.stream("class Queue:\n    def pop(self):", ONE, pins=pins)]
            assert table.counts["set"] == 2
            messages = [{"role": "user", "content": "Say what a stack is, in a few words."}]
            assert [delta async for delta in llm.stream_chat(messages, ONE, pins=pins)]
            assert table.counts["set"] == 3
            with pytest.raises(InvalidRequest, match="num_tokens of a pin"):
                await llm.generate("a", ONE, pins=[PrefixPin(num_tokens=0, seconds=60)])

    asyncio.run(asyncio.wait_for(session(), timeout=120))


@pytest.mark.parametrize("name", NAMES)
def test_pin_kv_computes_and_keeps_a_prompt_and_unpin_kv_lets_it_go(name: str, tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny(name)), **OPTIONS)
    Clock(llm)
    stem, table = ids("stem", 24), llm.engine.scheduler.kv.pins
    facts = {"num_tokens": 24, "num_blocks": 6, "seconds": 300.0, "expires_in": 300.0, "hits": 0}
    assert llm.pin_kv(prompt(stem), 300.0) == facts == table.describe(1000.0)[0]
    assert llm.pin_kv(prompt(stem), 5.0) == {**facts, "hits": 1}, "the longer time wins"
    assert llm.pin_kv(prompt(stem[:9]), 5.0, cache_salt="red")["num_tokens"] == 8
    flood(llm)
    assert cached(llm, [*stem, 5]) == 24 and cached(llm, stem) == 20, "one token at least is computed"
    assert cached(llm, stem, cache_salt="blue") == 0 and cached(llm, stem[:9], cache_salt="red") == 8
    assert llm.unpin_kv(prompt(stem[:9])) == 0, "it is another tenant's"
    assert llm.unpin_kv(prompt(stem)) == 1 and llm.unpin_kv(prompt(stem)) == 0
    flood(llm)
    assert cached(llm, [*stem, 5]) == 0
    with pytest.raises(InvalidRequest, match="without a prompt, the pins of one tenant cannot be told"):
        llm.unpin_kv(cache_salt="blue")
    assert llm.unpin_kv() == 1 and len(table) == 0
    assert llm.unpin_kv(prompt([1])) == 0


def test_what_cannot_be_pinned_is_refused_in_one_sentence(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS, max_pinned_share=0.02)
    num_blocks = llm.describe()["kv_blocks"]
    limit = int(num_blocks * 0.02)
    assert limit >= 1
    with pytest.raises(InvalidRequest, match=r"too short to be pinned: got 3 tokens; allowed: at least a block of 4 tokens"):
        llm.pin_kv(prompt([1, 2, 3]), 60)
    large = ids("large", 4 * (limit + 1))
    assert len(large) < 96
    with pytest.raises(InvalidRequest, match=rf"{limit + 1} blocks of 4 tokens; allowed: max_pinned_share of {num_blocks} blocks"):
        llm.pin_kv(prompt(large), 60)
    assert llm.pin_kv(prompt(large[:-4]), 60)["num_blocks"] == limit
    with pytest.raises(InvalidRequest, match="cache_salt"):
        llm.unpin_kv(prompt(large), cache_salt="\ud800")
    for options in ({"prefix_caching": False}, {"max_pins": 0}):
        without = LLM(str(tiny("llama-gqa")), **OPTIONS, **options)
        assert without.generate(prompt(large), ONE, use_tqdm=False)
        with pytest.raises(InvalidRequest, match=r"no pins: got prefix_caching=\w+, max_pins=\d+"):
            without.generate(prompt(large), ONE, pins=[PrefixPin(num_tokens=4, seconds=60)])
        with pytest.raises(InvalidRequest, match="no pins"):
            without.pin_kv(prompt(large), 60)


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM("demo", **{**OPTIONS, "max_model_len": 512, "kv_cache_memory": "16MiB"})


HOSTILE: list[tuple[Any, str]] = [
    (None, "pins have the wrong type"),
    ("pins", "pins have the wrong type"),
    (PrefixPin(num_tokens=1, seconds=1), "pins have the wrong type"),
    ([(4, 60)], "pins have the wrong type"),
    ([{"num_tokens": 4, "seconds": 60}], "pins have the wrong type"),
    ([PrefixPin(num_tokens=4, seconds=1)] * 17, "too many pins: got 17; allowed: up to 16"),
    *(([PrefixPin(num_tokens=n, seconds=1)], "num_tokens of a pin") for n in (0, -1, 9, True, 1.0, "4", None)),
    *(
        ([PrefixPin(num_tokens=4, seconds=s)], "seconds of a pin")
        for s in (0, -1.0, 604_801, math.inf, math.nan, True, "60", None, 10**400)
    ),
]


@pytest.mark.parametrize(("pins", "message"), HOSTILE)
def test_wrong_pins_are_refused_before_anything_runs(demo: LLM, pins: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        demo.generate([prompt([5] * 8)], ONE, use_tqdm=False, pins=pins)
    assert not demo.engine.has_unfinished_requests
    with pytest.raises(InvalidRequest, match="seconds of a pin"):
        demo.pin_kv(prompt([5] * 8), -1)


def test_the_largest_pins_are_taken(demo: LLM) -> None:
    demo.generate(prompt([5] * 8), ONE, use_tqdm=False, pins=[PrefixPin(num_tokens=8, seconds=604_800)] * 16)
    pins = demo.engine.scheduler.kv.pins.describe(demo.engine.clock())
    assert [pin["num_tokens"] for pin in pins] == [8] and pins[0]["expires_in"] > 604_000


def test_a_request_that_fails_leaves_pin_kv_an_error(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    monkeypatch.setattr(llm.engine._runner, "run", lambda plan: 1 / 0)
    with pytest.raises(HastenError, match="could not be computed"):
        llm.pin_kv(prompt(ids("stem", 8)), 60)
    assert len(llm.engine.scheduler.kv.pins) == 0


# ---------------------------------------------------------------- scores


def small_pool(folder: Path, num_blocks: int) -> LLM:
    roomy = LLM(str(folder), **OPTIONS).describe()
    block = roomy["kv_bytes"] // roomy["kv_blocks"]
    return LLM(str(folder), **{**OPTIONS, "kv_cache_memory": num_blocks * block, "max_model_len": 48}, max_pinned_share=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_drops_pins_only_if_it_has_no_other_way(name: str, tiny: Callable[[str], Path]) -> None:
    llm = small_pool(tiny(name), 14)
    clock, table = Clock(llm), llm.engine.scheduler.kv.pins
    stem = prompt(ids("score", 8))
    answers = [{"token_ids": ids(i, 9)} for i in range(4)]
    expected = llm.score(stem, answers)
    llm.reset_prefix_cache()
    for first, count in (("old", 16), ("new", 12)):
        llm.pin_kv(prompt(ids(first, count)), 60)
    assert table.num_blocks == 7
    # Seven blocks are free: two for the prompt, and four for two continuations at a time.
    assert llm.score(stem, answers) == expected and table.counts["dropped"] == 0
    llm.score(stem, [{"token_ids": ids("long", 24)}])
    assert table.counts["dropped"] == 1 and [pin["num_tokens"] for pin in table.describe(clock.now)] == [12]
    clock.now += 61
    llm.score(prompt(ids("whole", 38)), answers[:1])
    assert table.counts["dropped"] == 1 and table.counts["expired"] == 1, "a pin that has expired is not dropped"
    llm.engine.scheduler.kv.check()


def test_pins_that_have_expired_are_not_in_the_way_of_files(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    llm = small_pool(tiny("llama-gqa"), 14)
    clock, table = Clock(llm), llm.engine.scheduler.kv.pins
    saved = prompt(ids("saved", 40))
    llm.save_kv(saved, tmp_path / "x")
    llm.clear_kv()
    llm.pin_kv(prompt(ids("pinned", 40)), 60)
    with pytest.raises(CapacityError, match="that running requests and pins leave: got 10 blocks of 4 tokens; allowed: up to 4"):
        llm.load_kv(tmp_path / "x")
    assert table.num_blocks == 10, "files do not drop pins"
    clock.now += 60
    assert llm.load_kv(tmp_path / "x").num_new_blocks == 10
    assert table.counts["expired"] == 1
    llm.pin_kv(saved, 60)
    clock.now += 60
    assert llm.unpin_kv(saved) == 0 and table.counts["expired"] == 2


def test_clear_kv_counts_pinned_blocks_and_forgets_what_could_have_been_shared(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)
    llm.pin_kv(prompt(ids("stem", 24)), 60)
    assert llm.clear_kv() == 6
    (output,) = llm.generate(prompt(ids("stem", 24)), ONE, use_tqdm=False)
    assert output.metrics.num_shareable_tokens == 0


def test_a_score_extends_the_pins_of_its_prompt_and_fails_only_without_pins(tiny: Callable[[str], Path]) -> None:
    llm = small_pool(tiny("llama-gqa"), 14)
    clock, table = Clock(llm), llm.engine.scheduler.kv.pins
    stem = ids("score", 16)
    llm.pin_kv(prompt(stem), 60)
    clock.now += 50
    llm.score(prompt([*stem, 5]), [{"token_ids": [7, 8]}])
    (pin,) = table.describe(clock.now)
    assert (pin["hits"], pin["expires_in"]) == (1, 60.0)
    stream = llm.stream(prompt(ids("stream", 20)), GREEDY)
    next(stream)
    with pytest.raises(CapacityError, match="does not fit the KV pool"):
        llm.score(prompt(ids("whole", 40)), [{"token_ids": [7, 8]}])
    assert len(table) == 0 and table.counts["dropped"] == 1
    assert len(list(stream)) == 3


def test_the_first_delta_says_which_pin_was_hit_and_which_are_new(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **{**OPTIONS, "max_num_batched_tokens": 8, "max_num_seqs": 4})
    stem = ids("first delta", 30)

    def ask(token_ids: list[int], *pins: tuple[int, float], **settings: Any) -> tuple[int, tuple[tuple[int, float], ...]]:
        wanted = [PrefixPin(num_tokens=count, seconds=seconds) for count, seconds in pins]
        deltas = list(llm.stream(prompt(token_ids), GREEDY, pins=wanted, **settings))
        first, output = deltas[0].metrics, deltas[-1].output
        assert first is not None and output is not None and [delta.metrics for delta in deltas[1:]] == [None] * (len(deltas) - 1)
        assert first.num_prompt_tokens == len(token_ids) and first.num_cached_tokens == output.metrics.num_cached_tokens
        assert (first.num_pinned_tokens, first.new_pins) == (output.metrics.num_pinned_tokens, output.metrics.new_pins)
        return first.num_pinned_tokens, tuple((pin.num_tokens, pin.seconds) for pin in first.new_pins)

    assert ask(stem) == (0, ())
    assert ask(stem, (10, 300), (21, 60), (3, 9)) == (0, ((8, 300), (20, 60))), "unmarked blocks in the cache are no pins"
    assert ask(stem, (10, 300), (29, 60)) == (20, ((28, 60),))
    assert ask([*stem[:12], 1]) == (8, ()) and ask([*stem, 1, 2], (9, 3600)) == (28, ())
    assert ask(stem, (10, 300), cache_salt="other") == (0, ((8, 300),))
    assert llm.unpin_kv() == 4 and ask(stem) == (0, ())


def test_a_refused_pin_is_not_among_the_new_ones(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS, max_pinned_share=0.01)
    blocks = int(0.01 * llm.engine.scheduler.kv.num_blocks)
    stem = ids("refused", 60)
    assert 0 < 4 * (blocks + 1) <= 60
    pins = [PrefixPin(num_tokens=4 * count, seconds=60) for count in (blocks, blocks + 1)]
    (output,) = llm.generate(prompt(stem), ONE, use_tqdm=False, pins=pins)
    assert [pin.num_tokens for pin in output.metrics.new_pins] == [4 * blocks]
