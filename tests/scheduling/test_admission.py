"""When requests join in each batching mode, in what order, and what a request waiting for a prefix does."""

from __future__ import annotations

import pytest

from hasten.core.errors import PromptTooLong
from hasten.core.request import Request
from hasten.core.result import Continuation, Finish, FinishReason, StepResult
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler


def make(num_blocks: int = 64, **settings: object) -> Scheduler:
    space = KvCacheManager([KvGroup((0,), 1, 4)], num_blocks, 4)
    return Scheduler(SchedulerConfig(**{"max_num_seqs": 3, "max_model_len": 64, **settings}), space)


def add(scheduler: Scheduler, name: str, prompt: list[int] | None = None, **fields: object) -> None:
    params = SamplingParams(max_tokens=8, seed=0)
    tokens = tuple(prompt or [ord(name[0]), *range(5)])
    scheduler.add(Request(request_id=name, prompt_token_ids=tokens, params=params, **fields))


def step(scheduler: Scheduler, now: float = 0.0) -> dict[str, int]:
    """One step in which every sampled row gets token 1; returns the tokens computed for each request."""
    plan = scheduler.plan(now)
    rows = {scheduler.sequence(row.sequence_id).request.request_id: len(row.token_ids) for row in plan.rows}
    scheduler.commit(StepResult(tuple(Continuation(sequence_id, (1,)) for sequence_id in plan.sampled_sequence_ids)))
    return rows


def test_continuous_lets_a_request_join_at_any_step() -> None:
    scheduler = make()
    add(scheduler, "a")
    assert step(scheduler) == {"a": 6}
    add(scheduler, "b")
    assert step(scheduler) == {"a": 1, "b": 6}


def test_static_lets_nobody_join_before_all_are_done() -> None:
    scheduler = make(batching="static")
    for name in "ab":
        add(scheduler, name)
    assert set(step(scheduler)) == {"a", "b"}
    add(scheduler, "c")
    assert set(step(scheduler)) == {"a", "b"}
    scheduler.abort("a")
    assert set(step(scheduler)) == {"b"}
    scheduler.abort("b")
    assert set(step(scheduler)) == {"c"}


def test_a_static_batch_is_whole_though_the_token_budget_admits_it_in_parts() -> None:
    """Also where its members wait for a prefix that one of them computes. Whoever comes later waits for all of them."""
    scheduler = make(batching="static", max_num_batched_tokens=8)
    for name in "abc":
        add(scheduler, name, [*range(9), ord(name)])
    add(scheduler, "d")
    seen = [step(scheduler) for _ in range(4)]
    assert {name for rows in seen for name in rows} == {"a", "b", "c"}
    assert set(seen[-1]) == {"a", "b", "c"}


def test_dynamic_waits_for_company_but_not_for_long() -> None:
    scheduler = make(batching="dynamic", max_batch_delay=0.5)
    add(scheduler, "a", arrival=1.0)
    assert step(scheduler, now=1.2) == {} and scheduler.next_admission_time() == 1.5
    for name in "bc":
        add(scheduler, name, arrival=1.2)
    assert set(step(scheduler, now=1.2)) == {"a", "b", "c"}, "a full batch need not wait"
    for name in "abc":
        scheduler.abort(name)
    add(scheduler, "d", arrival=2.0)
    assert step(scheduler, now=2.4) == {} and set(step(scheduler, now=2.5)) == {"d"}


def test_a_long_prompt_is_chunked_and_never_delays_those_who_decode() -> None:
    scheduler = make(max_num_batched_tokens=8)
    add(scheduler, "a", [9, 9])
    assert step(scheduler) == {"a": 2}
    add(scheduler, "b", list(range(20)))
    assert [step(scheduler) for _ in range(3)] == [{"a": 1, "b": 7}, {"a": 1, "b": 7}, {"a": 1, "b": 6}]


def test_priority_goes_first_and_ageing_lets_nobody_starve() -> None:
    scheduler = make(max_num_seqs=1, scheduling_policy="priority", priority_seconds=10.0)
    add(scheduler, "low", priority=1, arrival=0.0)
    for name, arrival in (("early", 9.0), ("late", 11.0)):
        add(scheduler, name, priority=0, arrival=arrival)
    order = []
    while scheduler.has_unfinished_requests:
        order += [name for name in step(scheduler, now=12.0) if name not in order]
        scheduler.abort(order[-1])
    assert order == ["early", "low", "late"], "one level is worth ten seconds"


def test_a_request_waits_for_the_prefix_that_another_computes_and_others_pass_it() -> None:
    scheduler = make(max_num_batched_tokens=8)
    stem = list(range(50, 66))
    add(scheduler, "first", [*stem, 1, 2])
    add(scheduler, "twin", [*stem, 3])
    add(scheduler, "other", [7, 8])
    assert step(scheduler) == {"first": 8}
    assert step(scheduler) == {"first": 8}
    assert step(scheduler) == {"first": 2, "twin": 1, "other": 2}


def test_a_waiting_request_takes_over_when_the_one_it_waits_for_is_gone() -> None:
    scheduler = make(max_num_batched_tokens=8)
    stem = list(range(50, 66))
    add(scheduler, "first", [*stem, 1])
    add(scheduler, "twin", [*stem, 2])
    assert step(scheduler) == {"first": 8}
    scheduler.abort("first")
    assert step(scheduler) == {"twin": 8}, "the first blocks were kept, the rest is computed now"
    assert scheduler.find_request("twin") is not None and scheduler.find_request("twin").num_cached_tokens == 8


def test_when_blocks_run_out_the_last_in_order_gives_way_and_comes_back() -> None:
    scheduler = make(num_blocks=5, max_model_len=20)
    add(scheduler, "a", [1, 2, 3, 4, 5, 6, 7])
    add(scheduler, "b", [8, 9, 10, 11, 12, 13, 14])
    assert step(scheduler) == {"a": 7, "b": 7}
    seen = [step(scheduler) for _ in range(6)]
    assert {"a": 1, "b": 1} in seen and {"a": 1} in seen
    entry = scheduler.find_request("b")
    assert entry is not None and entry.num_preemptions == 1
    scheduler.abort("a")
    assert set(step(scheduler)) == {"b"}
    scheduler.kv.check()


def test_seats_of_answers_that_have_ended_are_free_again() -> None:
    scheduler = make(max_num_seqs=3)
    scheduler.add(Request(request_id="n", prompt_token_ids=(1, 2), params=SamplingParams(n=3, max_tokens=8, seed=0)))
    add(scheduler, "a")
    (first,) = scheduler.plan(0.0).sampled_sequence_ids
    scheduler.commit(StepResult(tuple(Continuation(first, (5 + i,), index=i) for i in range(3))))
    plan = scheduler.plan(0.0)
    assert len(plan.rows) == 3, "all seats are taken"
    ends, *live = plan.sampled_sequence_ids
    finish = Finish(FinishReason.STOP)
    scheduler.commit(StepResult((Continuation(ends, (0,), finish), *(Continuation(i, (1,)) for i in live))))
    assert set(step(scheduler)) == {"n", "a"}


def test_preempted_beams_that_share_nothing_any_more_still_finish() -> None:
    """Without a prefix cache a window forgets the shared prompt, so each beam needs a prompt of its own to come back."""
    groups = [KvGroup((0,), 1, 4), KvGroup((1,), 1, 4, window=7)]
    beams = SamplingParams(beam_width=4, max_tokens=20, seed=0)
    request = Request(request_id="beams", prompt_token_ids=tuple(range(60)), params=beams)
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=9, max_model_len=128, prefix_caching=False)
    with pytest.raises(PromptTooLong, match="80 blocks of 4 tokens; allowed: up to 79 blocks"):
        Scheduler(config, KvCacheManager(groups, 79, 4, keep_cached=False)).add(request)
    Scheduler(config, KvCacheManager(groups, 80, 4, keep_cached=False)).add(request)
