"""Blocks of requests whose tokens leave early: who may find them, and who waits for them."""

from __future__ import annotations

from hasten.core.early_exit import ExitPlan
from hasten.core.plan import RowPlan
from hasten.core.request import Request
from hasten.core.result import Continuation, StepResult
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler

PROMPT = tuple(range(1, 13))  # three blocks of four


def make() -> Scheduler:
    space = KvCacheManager([KvGroup((0,), 1, 4)], 64, 4)
    return Scheduler(SchedulerConfig(max_num_seqs=4, max_model_len=64), space)


def add(scheduler: Scheduler, name: str, rule: str = "none", prompt: tuple[int, ...] = PROMPT, depth: int | None = None) -> None:
    settings = {"fixed": {"exit_layer": depth}, "none": {}}.get(rule, {"exit_threshold": 0.5})
    params = SamplingParams(max_tokens=16, seed=0, exit_rule=rule, **settings)
    scheduler.add(Request(request_id=name, prompt_token_ids=prompt, params=params, exit_layer=depth))


def step(scheduler: Scheduler, depths: dict[str, int] | None = None) -> dict[str, RowPlan]:
    """Every sampled row gets token 9; ``depths``: of the requests whose last token leaves early."""
    plan = scheduler.plan(0.0)
    rows = {scheduler.sequence(row.sequence_id).request.request_id: row for row in plan.rows}
    left = {rows[name].sequence_id: depth for name, depth in (depths or {}).items()}
    scheduler.commit(StepResult(tuple(Continuation(i, (9,)) for i in plan.sampled_sequence_ids), exit_layers=left))
    scheduler.kv.check()
    return rows


def starts(rows: dict[str, RowPlan]) -> dict[str, int]:
    return {name: row.start for name, row in rows.items()}


def preempt(scheduler: Scheduler, name: str) -> None:
    entry = scheduler.find_request(name)
    assert entry is not None
    scheduler._preempt(entry)


def test_nobody_waits_for_a_prefix_that_will_not_come() -> None:
    """The second request waits for the blocks of the first, which leaves after layer 2 as a whole: it computes its own."""
    scheduler = make()
    add(scheduler, "early", "entropy")
    add(scheduler, "whole")
    assert starts(step(scheduler, {"early": 2})) == {"early": 0}
    rows = step(scheduler)
    assert starts(rows) == {"early": 12, "whole": 0}
    assert rows["early"].exit_plan == ExitPlan((2,), fill=False) and rows["whole"].exit_plan is None


def test_blocks_up_to_the_first_token_that_left_early_are_for_all() -> None:
    scheduler = make()
    add(scheduler, "early", "softmax")
    step(scheduler)
    for depths in ({}, {}, {}, {"early": 2}, {}, {}, {}, {}):  # token 15, the last of the fourth block, leaves early
        step(scheduler, depths)
    add(scheduler, "whole", prompt=(*PROMPT, 9, 9, 9, 9, 9, 9, 9, 9, 9))
    assert starts(step(scheduler))["whole"] == 12


def test_a_request_that_comes_back_does_not_take_blocks_that_went_deeper_than_its_own_tokens() -> None:
    """Its answer would depend on whether it was preempted."""
    scheduler = make()
    add(scheduler, "early", "softmax")
    for depths in ({}, {"early": 2}, {}, {}, {}, {}):
        step(scheduler, depths)
    add(scheduler, "whole", prompt=(*PROMPT, 9, 9, 9, 9, 9))
    step(scheduler)
    preempt(scheduler, "early")
    row = step(scheduler)["early"]
    assert row.start == 12
    assert row.exit_plan is not None and row.exit_plan.exit_layers[:2] == (2, None)


def test_what_comes_back_shallow_is_not_taken_for_whole() -> None:
    """The first block was computed by all layers, and is lost; the second time fewer layers compute it."""
    scheduler = make()
    scheduler.config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=8, max_model_len=64)
    add(scheduler, "early", "entropy")
    assert starts(step(scheduler)) == {"early": 0}
    assert starts(step(scheduler, {"early": 2})) == {"early": 8}
    preempt(scheduler, "early")
    scheduler.kv.clear_cached()
    assert starts(step(scheduler)) == {"early": 0}
    step(scheduler)
    add(scheduler, "whole")
    assert starts(step(scheduler))["whole"] == 0


def test_a_given_depth_shares_blocks_with_the_same_depth_alone() -> None:
    scheduler = make()
    add(scheduler, "two", "fixed", depth=2)
    step(scheduler)
    for name, depth in (("again", 2), ("three", 3)):
        add(scheduler, name, "fixed", depth=depth)
    add(scheduler, "whole")
    rows = starts(step(scheduler))
    assert rows["again"] == 8 and rows["three"] == 0 and rows["whole"] == 0
