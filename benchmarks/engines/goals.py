"""Each goal's line from the measured rows: hasten against the best peer, or void because somebody is missing."""

from collections.abc import Sequence
from typing import Any

from engines.roster import GOALS, HASTEN, PHASES, ROSTER, Entrant, Goal

Row = dict[str, Any]
MIN_TURNS = 3


def lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One per goal. ``void`` names who is missing or had too few turns; otherwise there is a ratio. Only medians are compared."""
    return [_line(goal, rows) for goal in GOALS]


def expected(goal: Goal) -> list[tuple[Entrant, str]]:
    """(peer, weights) that this goal has to be compared with."""
    phases = [p for p in PHASES if goal.work in p.works and p.kv == goal.kv and goal.weights in (None, p.weights)]
    return [(e, p.weights) for p in phases for e in ROSTER if e.name != HASTEN and e.runs(p.weights, p.kv, goal.work)]


def _line(goal: Goal, rows: Sequence[Row]) -> dict[str, Any]:
    found = [row for row in rows if row["work"] == goal.work and row["kv"] == goal.kv and goal.weights in (None, row["weights"])]
    line: dict[str, Any] = {"goal": goal.words, "at_least": goal.factor, "aim": goal.aim}
    turns = {(row["engine"], row["weights"]): (len(row["seconds"]), _turns(row)) for row in found}
    short = [f"{engine} {weights} ({had} of {due} turns)" for (engine, weights), (had, due) in turns.items() if had < due]
    missing = [f"{e.name} {weights}" for e, weights in expected(goal) if e.required and (e.name, weights) not in turns]
    ours = [row for row in found if row["engine"] == HASTEN]
    missing = ([] if ours else [HASTEN]) + missing + short
    if missing:
        return {**line, "void": missing}
    peers = [row for row in found if row["engine"] != HASTEN]
    best, peer = (max(side, key=median) for side in (ours, peers))
    ratio = median(best) / median(peer)
    return {
        **line,
        "hasten": {"weights": best["weights"], "tokens_per_second": median(best), "share_of_limit": best["share_of_limit"]},
        "peer": {"engine": peer["engine"], "weights": peer["weights"], "tokens_per_second": median(peer)},
        "ratio": ratio,
        "met": ratio >= goal.factor,
    }


def _turns(row: Row) -> int:
    phase = next(p for p in PHASES if (p.weights, p.kv) == (row["weights"], row["kv"]))
    return phase.turns.get(row["work"], MIN_TURNS)


def median(row: Row) -> float:
    return float(row["tokens_per_second"]["median"])
