"""A benchmark's result as plain data: medians over the repeats with their spread, and all that is needed to repeat it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.bench.measure import Run
from hasten.bench.provenance import provenance
from hasten.bench.workload import Workload

PERCENTILES = (50, 90, 99)


def make_report(kind: str, description: Mapping[str, Any], workload: Workload, runs: Sequence[Run]) -> dict[str, Any]:
    """One JSON object: times in seconds, rates per second."""
    return {
        **provenance(kind),
        "engine": dict(description),
        "workload": dataclasses.asdict(workload),
        "repeats": len(runs),
        "quality": f"the checkpoint as it is, computed in {description['dtype']}; greedy",
        "output_tokens_per_second": spread([run.output_tokens / run.seconds for run in runs]),
        "total_tokens_per_second": spread([(run.prompt_tokens + run.output_tokens) / run.seconds for run in runs]),
        "requests_per_second": spread([len(run.e2e) / run.seconds for run in runs]),
        "seconds": spread([run.seconds for run in runs]),
        "cached_prompt_tokens": spread([run.cached_tokens for run in runs]),
        "ttft": percentiles([value for run in runs for value in run.ttft]),
        "itl": percentiles([value for run in runs for value in run.itl]),
        "e2e": percentiles([value for run in runs for value in run.e2e]),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """The nearest-rank percentiles and the mean; None of nothing (answers of one token have no gaps)."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[-(-p * len(ordered) // 100) - 1] for p in PERCENTILES}
    return {**ranks, "mean": statistics.fmean(ordered)}


def lines(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, median, spread or percentiles) for people."""
    rows = [
        _rate("output tokens/s", report["output_tokens_per_second"]),
        _rate("total tokens/s", report["total_tokens_per_second"]),
    ]
    rows += [_rate("requests/s", report["requests_per_second"])]
    for name, label in (("ttft", "TTFT"), ("itl", "ITL"), ("e2e", "E2E")):
        times = report[name]
        if times is not None:
            more = ", ".join(f"p{p} {times[f'p{p}'] * 1e3:.1f}" for p in PERCENTILES[1:])
            rows.append((f"{label} ms", f"{times['p50'] * 1e3:.1f}", more))
    return rows


def _rate(label: str, values: Mapping[str, float]) -> tuple[str, str, str]:
    return label, f"{values['median']:.1f}", f"{values['min']:.1f} to {values['max']:.1f}"
