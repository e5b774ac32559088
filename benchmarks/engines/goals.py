"""The result of each goal: the ratio of hasten to the best other engine, or void."""

from collections.abc import Collection, Sequence
from typing import Any

from engines.registry import ENGINES, GOALS, HASTEN, PHASES, EngineSpec, Goal

Row = dict[str, Any]
MIN_REPEATS = 3


def results(rows: Sequence[Row], kernels: str, weights: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return one result per goal: a ratio of medians, or ``void`` with the reasons.

    A goal is void if an engine is missing or had too few repeats. ``kernels`` is the instruction set of hasten's kernels. Only
    goals with ``weights`` are returned; None: all.
    """
    has_avx512 = kernels in ("avx512", "amx")
    return [_result(goal, rows, has_avx512=has_avx512) for goal in GOALS if weights is None or goal.weights in weights]


def expected(goal: Goal) -> list[tuple[EngineSpec, str]]:
    """Return the (engine, weights) pairs that hasten is compared with."""
    phases = [p for p in PHASES if goal.workload in p.workloads and p.kv == goal.kv and goal.weights in (None, p.weights)]
    others = [e for e in ENGINES if (e.name in goal.others if goal.others else e.program != HASTEN)]
    return [(e, p.weights) for p in phases for e in others if e.runs(p.weights, p.kv, goal.workload)]


def _result(goal: Goal, rows: Sequence[Row], *, has_avx512: bool) -> dict[str, Any]:
    compared = {goal.engine, *(engine.name for engine, _ in expected(goal))}
    goal_rows = [
        row
        for row in rows
        if row["engine"] in compared
        and row["work"] == goal.workload
        and row["kv"] == goal.kv
        and goal.weights in (None, row["weights"])
    ]
    factor = goal.factor if has_avx512 or goal.factor_avx2 is None else goal.factor_avx2
    result: dict[str, Any] = {"goal": goal.name, "at_least": factor, "aim": goal.aim}
    repeats = {(row["engine"], row["weights"]): (len(row["seconds"]), _min_repeats(row)) for row in goal_rows}
    short = [
        f"{engine} {weights} ({count} of {minimum} repeats)"
        for (engine, weights), (count, minimum) in repeats.items()
        if count < minimum
    ]
    missing = [f"{e.name} {weights}" for e, weights in expected(goal) if e.required and (e.name, weights) not in repeats]
    hasten_rows = [row for row in goal_rows if row["engine"] == goal.engine]
    missing = ([] if hasten_rows else [goal.engine]) + missing + short
    if missing:
        return {**result, "void": missing}
    peer_rows = [row for row in goal_rows if row["engine"] != goal.engine]
    best, peer = (max(side, key=median) for side in (hasten_rows, peer_rows))
    ratio = median(best) / median(peer)
    return {
        **result,
        "hasten": {"weights": best["label"], "tokens_per_second": median(best), "share_of_limit": best["share_of_limit"]},
        "peer": {"engine": peer["engine"], "weights": peer["label"], "tokens_per_second": median(peer)},
        "ratio": ratio,
        "met": ratio >= factor,
    }


def _min_repeats(row: Row) -> int:
    phase = next(p for p in PHASES if (p.weights, p.kv) == (row["weights"], row["kv"]))
    return phase.repeats.get(row["work"], MIN_REPEATS)


def median(row: Row) -> float:
    return float(row["tokens_per_second"]["median"])
