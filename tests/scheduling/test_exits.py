"""Early exit and the prefix cache: which blocks are shared, and which requests wait for them."""

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
    kv = KvCacheManager([KvGroup((0,), 1, 4)], 64, 4)
    return Scheduler(SchedulerConfig(max_num_seqs=4, max_model_len=64), kv)


def add(scheduler: Scheduler, name: str, rule: str = "none", prompt: tuple[int, ...] = PROMPT, layer: int | None = None) -> None:
    settings = {"fixed": {"exit_layer": layer}, "none": {}}.get(rule, {"exit_threshold": 0.5})
    params = SamplingParams(max_tokens=16, seed=0, exit_rule=rule, **settings)
    scheduler.add(Request(request_id=name, prompt_token_ids=prompt, params=params, exit_layer=layer))


def step(scheduler: Scheduler, exit_layers: dict[str, int] | None = None) -> dict[str, RowPlan]:
    """Take a step in which every sampled sequence gets token 9. ``exit_layers``: early exits by request."""
    plan = scheduler.plan(0.0)
    rows = {scheduler.sequence(row.sequence_id).request.request_id: row for row in plan.rows}
    early = {rows[name].sequence_id: layer for name, layer in (exit_layers or {}).items()}
    scheduler.commit(StepResult(tuple(Continuation(i, (9,)) for i in plan.sampled_sequence_ids), exit_layers=early))
    scheduler.kv.check()
    return rows


def starts(rows: dict[str, RowPlan]) -> dict[str, int]:
    return {name: row.start for name, row in rows.items()}


def preempt(scheduler: Scheduler, name: str) -> None:
    scheduler._preempt(scheduler._requests[name])


def test_no_request_waits_for_blocks_that_are_not_cached_in_the_end() -> None:
    """The second request waits for blocks of the first, which exits after layer 2, and computes its own."""
    scheduler = make()
    add(scheduler, "early", "entropy")
    add(scheduler, "full")
    assert starts(step(scheduler, {"early": 2})) == {"early": 0}
    rows = step(scheduler)
    assert starts(rows) == {"early": 12, "full": 0}
    assert rows["early"].exit_plan == ExitPlan((2,), fill_kv=False) and rows["full"].exit_plan is None


def test_blocks_before_the_first_token_that_exited_early_are_shared() -> None:
    scheduler = make()
    add(scheduler, "early", "softmax")
    step(scheduler)
    for exit_layers in ({}, {}, {}, {"early": 2}, {}, {}, {}, {}):  # token 15, the last of the fourth block, exits early
        step(scheduler, exit_layers)
    add(scheduler, "full", prompt=(*PROMPT, 9, 9, 9, 9, 9, 9, 9, 9, 9))
    assert starts(step(scheduler))["full"] == 12


def test_a_preempted_request_does_not_use_blocks_that_more_layers_computed() -> None:
    """Else its output would depend on the preemption."""
    scheduler = make()
    add(scheduler, "early", "softmax")
    for exit_layers in ({}, {"early": 2}, {}, {}, {}, {}):
        step(scheduler, exit_layers)
    add(scheduler, "full", prompt=(*PROMPT, 9, 9, 9, 9, 9))
    step(scheduler)
    preempt(scheduler, "early")
    row = step(scheduler)["early"]
    assert row.start == 12
    assert row.exit_plan is not None and row.exit_plan.exit_layers[:2] == (2, None)


def test_tokens_that_fewer_layers_recompute_are_not_shared() -> None:
    """All layers compute the first block, and it is evicted; after a preemption fewer layers compute it."""
    scheduler = make()
    scheduler.config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=8, max_model_len=64)
    add(scheduler, "early", "entropy")
    assert starts(step(scheduler)) == {"early": 0}
    assert starts(step(scheduler, {"early": 2})) == {"early": 8}
    preempt(scheduler, "early")
    scheduler.kv.clear_cached()
    assert starts(step(scheduler)) == {"early": 0}
    step(scheduler)
    add(scheduler, "full")
    assert starts(step(scheduler))["full"] == 0


def test_requests_of_one_exit_layer_share_blocks_with_that_layer_alone() -> None:
    scheduler = make()
    add(scheduler, "two", "fixed", layer=2)
    step(scheduler)
    for name, layer in (("again", 2), ("three", 3)):
        add(scheduler, name, "fixed", layer=layer)
    add(scheduler, "full")
    rows = starts(step(scheduler))
    assert rows["again"] == 8 and rows["three"] == 0 and rows["full"] == 0
