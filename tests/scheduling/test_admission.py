"""Admission in each batching mode, its order, and requests that wait for a prefix in flight."""

from __future__ import annotations

import pytest

from hasten.core.errors import InvalidOption, PromptTooLong
from hasten.core.request import Request
from hasten.core.result import Continuation, Finish, FinishReason, StepResult
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler


def make(num_blocks: int = 64, **settings: object) -> Scheduler:
    kv = KvCacheManager([KvGroup((0,), 1, 4)], num_blocks, 4)
    return Scheduler(SchedulerConfig(**{"max_num_seqs": 3, "max_model_len": 64, **settings}), kv)


def add(scheduler: Scheduler, name: str, prompt: list[int] | None = None, **fields: object) -> None:
    params = SamplingParams(max_tokens=8, seed=0)
    tokens = tuple(prompt or [ord(name[0]), *range(5)])
    scheduler.add(Request(request_id=name, prompt_token_ids=tokens, params=params, **fields))


def step(scheduler: Scheduler, now: float = 0.0) -> dict[str, int]:
    """Take a step in which every sampled sequence gets token 1; return computed tokens per request."""
    plan = scheduler.plan(now)
    rows = {scheduler.sequence(row.sequence_id).request.request_id: len(row.token_ids) for row in plan.rows}
    scheduler.commit(StepResult(tuple(Continuation(sequence_id, (1,)) for sequence_id in plan.sampled_sequence_ids)))
    return rows


def test_continuous_batching_admits_a_request_at_any_step() -> None:
    scheduler = make()
    add(scheduler, "a")
    assert step(scheduler) == {"a": 6}
    add(scheduler, "b")
    assert step(scheduler) == {"a": 1, "b": 6}


def test_static_batching_admits_no_request_before_all_have_ended() -> None:
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


def test_a_static_batch_is_complete_although_the_token_budget_admits_it_in_parts() -> None:
    """Requests of the batch may wait for a prefix of another; a later request waits for all of them."""
    scheduler = make(batching="static", max_num_batched_tokens=8)
    for name in "abc":
        add(scheduler, name, [*range(9), ord(name)])
    add(scheduler, "d")
    seen = [step(scheduler) for _ in range(4)]
    assert {name for rows in seen for name in rows} == {"a", "b", "c"}
    assert set(seen[-1]) == {"a", "b", "c"}


def test_dynamic_batching_waits_for_a_full_batch_up_to_the_delay() -> None:
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


def test_a_long_prompt_is_chunked_and_does_not_delay_decoding_requests() -> None:
    scheduler = make(max_num_batched_tokens=8)
    add(scheduler, "a", [9, 9])
    assert step(scheduler) == {"a": 2}
    add(scheduler, "b", list(range(20)))
    assert [step(scheduler) for _ in range(3)] == [{"a": 1, "b": 7}, {"a": 1, "b": 7}, {"a": 1, "b": 6}]


def test_priority_goes_first_and_ageing_prevents_starvation() -> None:
    scheduler = make(max_num_seqs=1, scheduling_policy="priority", priority_seconds=10.0)
    add(scheduler, "low", priority=1, arrival=0.0)
    for name, arrival in (("early", 9.0), ("late", 11.0)):
        add(scheduler, name, priority=0, arrival=arrival)
    order = []
    while scheduler.num_running or scheduler.num_waiting:
        order += [name for name in step(scheduler, now=12.0) if name not in order]
        scheduler.abort(order[-1])
    assert order == ["early", "low", "late"], "one level is worth ten seconds"


def test_a_request_waits_for_a_prefix_in_flight_and_others_overtake_it() -> None:
    scheduler = make(max_num_batched_tokens=8)
    stem = list(range(50, 66))
    add(scheduler, "first", [*stem, 1, 2])
    add(scheduler, "twin", [*stem, 3])
    add(scheduler, "other", [7, 8])
    assert step(scheduler) == {"first": 8}
    assert step(scheduler) == {"first": 8}
    assert step(scheduler) == {"first": 2, "twin": 1, "other": 2}


def test_a_waiting_request_computes_the_prefix_itself_after_an_abort() -> None:
    scheduler = make(max_num_batched_tokens=8)
    stem = list(range(50, 66))
    add(scheduler, "first", [*stem, 1])
    add(scheduler, "twin", [*stem, 2])
    assert step(scheduler) == {"first": 8}
    scheduler.abort("first")
    assert step(scheduler) == {"twin": 8}, "the first blocks are cached, and the rest is computed now"
    assert scheduler._requests["twin"].num_cached_tokens == 8


def test_when_blocks_run_out_the_last_request_is_preempted_and_resumes() -> None:
    scheduler = make(num_blocks=5, max_model_len=20)
    add(scheduler, "a", [1, 2, 3, 4, 5, 6, 7])
    add(scheduler, "b", [8, 9, 10, 11, 12, 13, 14])
    assert step(scheduler) == {"a": 7, "b": 7}
    seen = [step(scheduler) for _ in range(6)]
    assert {"a": 1, "b": 1} in seen and {"a": 1} in seen
    assert scheduler._requests["b"].num_preemptions == 1
    scheduler.abort("a")
    assert set(step(scheduler)) == {"b"}
    scheduler.kv.check()


def test_ended_sequences_no_longer_count_against_max_num_seqs() -> None:
    scheduler = make(max_num_seqs=3)
    scheduler.add(Request(request_id="n", prompt_token_ids=(1, 2), params=SamplingParams(n=3, max_tokens=8, seed=0)))
    add(scheduler, "a")
    (first,) = scheduler.plan(0.0).sampled_sequence_ids
    scheduler.commit(StepResult(tuple(Continuation(first, (5 + i,), index=i) for i in range(3))))
    plan = scheduler.plan(0.0)
    assert len(plan.rows) == 3, "max_num_seqs is reached"
    ended, *live = plan.sampled_sequence_ids
    finish = Finish(FinishReason.STOP)
    scheduler.commit(StepResult((Continuation(ended, (0,), finish), *(Continuation(i, (1,)) for i in live))))
    assert set(step(scheduler)) == {"n", "a"}


def test_the_capacity_check_counts_a_prompt_per_beam_if_beams_share_no_blocks() -> None:
    """A window drops the shared prompt, so without a prefix cache each preempted beam computes its own."""
    groups = [KvGroup((0,), 1, 4), KvGroup((1,), 1, 4, window=7)]
    beams = SamplingParams(beam_width=4, max_tokens=20, seed=0)
    request = Request(request_id="beams", prompt_token_ids=tuple(range(60)), params=beams)
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=9, max_model_len=128, prefix_caching=False)
    with pytest.raises(PromptTooLong, match="80 blocks of 4 tokens; allowed: up to 79 blocks"):
        Scheduler(config, KvCacheManager(groups, 79, 4, keep_cached=False)).add(request)
    Scheduler(config, KvCacheManager(groups, 80, 4, keep_cached=False)).add(request)


@pytest.mark.parametrize(("name", "value"), [("batching", "continous"), ("scheduling_policy", "fcsf")])
def test_an_unknown_mode_is_refused_with_the_nearest_one(name: str, value: str) -> None:
    with pytest.raises(InvalidOption, match=f"{name}='{value}' .*Did you mean '(continuous|fcfs)'"):
        SchedulerConfig(**{name: value})


@pytest.mark.parametrize("presence_penalty", [0.0, 0.5])
def test_each_sequence_has_its_own_history_if_the_request_has_penalties(presence_penalty: float) -> None:
    scheduler = make()
    params = SamplingParams(n=2, max_tokens=8, seed=0, presence_penalty=presence_penalty)
    sequences = scheduler.add(Request(request_id="n", prompt_token_ids=(1, 2), params=params)).sequences
    (sequence_id,) = scheduler.plan(0.0).sampled_sequence_ids
    scheduler.commit(StepResult(tuple(Continuation(sequence_id, (5 + i,), index=i) for i in range(2))))
    histories = {id(sequence.history) for sequence in sequences if sequence.history is not None}
    assert len(sequences) == 2 and len(histories) == (2 if presence_penalty else 0)
