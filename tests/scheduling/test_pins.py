"""Pins of requests: when they are set, which requests extend them, and when they give way to a running request."""

from __future__ import annotations

from hasten.core.draft import Draft
from hasten.core.request import PrefixPin, Request
from hasten.core.result import Continuation, StepResult
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler

SIZE = 4
WEEK = 604_800.0


def make(num_blocks: int = 64, **settings: object) -> Scheduler:
    kv = KvCacheManager([KvGroup((0,), 1, 4)], num_blocks, SIZE, max_pins=8, max_pinned_share=1.0)
    return Scheduler(SchedulerConfig(**{"max_num_seqs": 4, "max_model_len": 256, **settings}), kv)


def add(scheduler: Scheduler, name: str, prompt: list[int], *pins: int, max_tokens: int = 8, seconds: float = WEEK) -> None:
    """Add a request that pins its first ``pins`` tokens."""
    params = SamplingParams(max_tokens=max_tokens, seed=0)
    all_pins = tuple(PrefixPin(num_tokens=count, seconds=seconds) for count in pins)
    scheduler.add(Request(request_id=name, prompt_token_ids=tuple(prompt), params=params, pins=all_pins))


def step(scheduler: Scheduler, now: float = 0.0) -> dict[str, int]:
    """Take a step in which every sampled sequence gets token 1; return computed tokens per request."""
    plan = scheduler.plan(now)
    rows = {scheduler.sequence(row.sequence_id).request.request_id: len(row.token_ids) for row in plan.rows}
    scheduler.commit(StepResult(tuple(Continuation(sequence_id, (1,)) for sequence_id in plan.sampled_sequence_ids)))
    scheduler.kv.check()
    return rows


def pinned(scheduler: Scheduler, now: float = 0.0) -> list[int]:
    """Return the tokens of the pinned prefixes."""
    return sorted(pin["num_tokens"] for pin in scheduler.kv.pins.describe(now))


def counts(scheduler: Scheduler) -> dict[str, int]:
    return {event: count for event, count in scheduler.kv.pins.counts.items() if count}


def leave_pin(scheduler: Scheduler, first: int, num_tokens: int, **settings: object) -> None:
    """Let a request pin a prompt of ``num_tokens``, and end it."""
    add(scheduler, "pins", [first] * num_tokens, num_tokens, **settings)
    step(scheduler)
    scheduler.abort("pins")


def test_a_pin_is_set_in_the_step_that_completes_its_prefix() -> None:
    scheduler = make(max_num_batched_tokens=8)
    add(scheduler, "a", list(range(20)), 3, 9, 18, 20)
    seen = []
    for _ in range(3):
        step(scheduler)
        seen.append(pinned(scheduler))
    assert seen == [[8], [8, 16], [8, 16, 20]], "rounded down to blocks; three tokens are no block"
    assert counts(scheduler) == {"set": 3}


def test_a_cached_prefix_is_pinned_when_the_request_is_admitted() -> None:
    scheduler = make()
    add(scheduler, "a", list(range(16)))
    step(scheduler)
    scheduler.abort("a")
    add(scheduler, "b", list(range(16)), 12)
    scheduler.plan(0.0)
    assert pinned(scheduler) == [12]


def test_a_pin_survives_its_request_but_a_request_that_ends_early_pins_nothing() -> None:
    scheduler = make(max_num_batched_tokens=8)
    add(scheduler, "a", list(range(20)), 8, 20)
    step(scheduler)
    scheduler.abort("a")
    assert pinned(scheduler) == [8] and scheduler.kv.allocators[0].num_held == 2
    add(scheduler, "b", [7] * 20, 8)
    scheduler.plan(0.0)
    scheduler.fail(scheduler._requests["b"], RuntimeError("planted"))
    scheduler.take_failures()
    assert pinned(scheduler) == [8] and counts(scheduler) == {"set": 1}


def test_a_request_that_is_preempted_before_its_prefix_is_computed_pins_it_later() -> None:
    scheduler = make(max_num_batched_tokens=8)
    add(scheduler, "a", list(range(20)), 20)
    step(scheduler)
    scheduler._preempt(scheduler._requests["a"])
    assert pinned(scheduler) == []
    for _ in range(3):
        step(scheduler)
    scheduler._preempt(scheduler._requests["a"])
    step(scheduler)
    assert pinned(scheduler) == [20] and counts(scheduler) == {"set": 1}


def test_an_admission_whose_prompt_begins_with_a_pinned_prefix_extends_the_pin_once() -> None:
    scheduler = make()
    leave_pin(scheduler, 5, 8, seconds=10.0)
    for name, prompt, now in (("longer", [5] * 9, 4.0), ("equal", [5] * 8, 8.0), ("other", [5] * 7 + [6] * 4, 9.0)):
        add(scheduler, name, prompt)
        step(scheduler, now)
        scheduler._preempt(scheduler._requests[name])
        step(scheduler, now)
        scheduler.abort(name)
    assert counts(scheduler) == {"set": 1, "hits": 2}
    assert pinned(scheduler, 17.9) == [8] and pinned(scheduler, 18.0) == []


def test_a_pin_expires_by_the_clock_of_the_engine() -> None:
    scheduler = make()
    leave_pin(scheduler, 5, 8, seconds=10.0)
    scheduler.plan(9.9)
    assert scheduler.kv.allocators[0].num_held == 2
    scheduler.plan(10.0)
    assert scheduler.kv.allocators[0].num_held == 0 and counts(scheduler) == {"set": 1, "expired": 1}


def test_other_requests_are_preempted_before_a_pin_is_dropped() -> None:
    scheduler = make(num_blocks=8)
    leave_pin(scheduler, 5, 8)  # 2 of 8 blocks
    leave_pin(scheduler, 6, 4)  # 1 more
    add(scheduler, "a", [1] * 7, max_tokens=25)
    add(scheduler, "b", [2] * 3, max_tokens=25)
    events: list[tuple[int, int]] = []
    for _ in range(25):
        step(scheduler)
        b = scheduler._requests["b"]
        events.append((b.num_preemptions, scheduler.kv.pins.counts["dropped"]))
    assert events[0] == (0, 0) and (1, 0) in events, "b is preempted while both pins stand"
    assert events[-1] == (1, 2) and pinned(scheduler) == [], "a runs alone, and needs all blocks"
    assert [dropped for _, dropped in events] == sorted(dropped for _, dropped in events)
    assert len(scheduler._requests["a"].sequences[0].token_ids) == 7 + 25, "no step was lost: a never waits for a pin"


def test_the_pin_unused_for_longest_is_dropped_first_and_no_more_than_needed() -> None:
    scheduler = make(num_blocks=8)
    leave_pin(scheduler, 5, 8)
    leave_pin(scheduler, 6, 8)
    add(scheduler, "hit", [5] * 9, max_tokens=1)
    step(scheduler)
    scheduler.abort("hit")
    add(scheduler, "a", [1] * 20, max_tokens=4)  # 6 blocks; 4 are free
    assert step(scheduler) == {"a": 20}
    assert [pin["hits"] for pin in scheduler.kv.pins.describe(0.0)] == [1] and counts(scheduler)["dropped"] == 1


def test_a_pool_full_of_pins_admits_a_request_of_its_own_size() -> None:
    scheduler = make(num_blocks=8)
    for first in (5, 6, 7, 8):
        leave_pin(scheduler, first, 8)
    assert scheduler.kv.allocators[0].num_available == 0
    add(scheduler, "a", [1] * 28, max_tokens=4)
    assert step(scheduler) == {"a": 28} and pinned(scheduler) == [] and counts(scheduler)["dropped"] == 4


def test_a_waiting_request_drops_no_pin_while_another_runs() -> None:
    scheduler = make(num_blocks=8)
    leave_pin(scheduler, 5, 12)
    add(scheduler, "a", [1] * 8)
    add(scheduler, "b", [2] * 16)
    assert step(scheduler) == {"a": 8} and step(scheduler) == {"a": 1} and pinned(scheduler) == [12]
    scheduler.abort("a")
    assert step(scheduler) == {"b": 16} and pinned(scheduler) == [12], "four blocks are free now"


def test_no_pin_is_dropped_for_a_draft() -> None:
    scheduler = make(num_blocks=4)
    leave_pin(scheduler, 5, 8)
    add(scheduler, "a", [1] * 7, max_tokens=9)
    step(scheduler)
    (sequence,) = scheduler.sequences_to_draft()
    scheduler.set_draft(sequence, Draft.chain([1] * 5))
    assert step(scheduler) == {"a": 1} and pinned(scheduler) == [8]
    assert step(scheduler) == {"a": 1} and pinned(scheduler) == [], "its own token needs the block"


def test_what_a_corrupted_request_has_computed_is_not_pinned_and_loses_its_pins() -> None:
    scheduler = make()
    add(scheduler, "a", [5] * 9, 8)
    (sequence_id,) = scheduler.plan(0.0).sampled_sequence_ids
    scheduler.commit(StepResult((), corrupted=(sequence_id,)))
    assert pinned(scheduler) == [] and counts(scheduler) == {}
    add(scheduler, "b", [5] * 9, 8)
    leave_pin(scheduler, 6, 8)
    step(scheduler)
    (sequence_id,) = scheduler.plan(0.0).sampled_sequence_ids
    assert pinned(scheduler) == [8, 8]
    scheduler.commit(StepResult((), corrupted=(sequence_id,)))
    assert pinned(scheduler) == [8] and counts(scheduler)["removed"] == 1
    scheduler.kv.check()


def test_blocks_that_early_exit_keeps_out_of_the_cache_are_not_pinned() -> None:
    kv = make().kv
    tokens = [5] * 12
    kv.open(1, "salt", kv.block_hashes("salt", tokens))
    kv.reserve(1, 0, 12)
    kv.commit(1, tokens, 12, num_cacheable_tokens=6)
    pins = [PrefixPin(num_tokens=count, seconds=WEEK) for count in (4, 8, 16)]
    assert kv.set_pins(1, pins, 12) == (pins[2:], pins[:1])
    assert (kv.pins.counts["set"], kv.pins.counts["refused"], len(kv.pins)) == (1, 1, 1)
    kv.check()
