"""A benchmark's result as plain data: medians with their spread, and everything needed to repeat it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.bench.provenance import provenance
from hasten.entrypoints.workload import Run, Workload

PERCENTILES = (50, 90, 99)


def make_report(kind: str, description: Mapping[str, Any], workload: Workload, runs: Sequence[Run]) -> dict[str, Any]:
    """Return one JSON object. Times in seconds, rates per second."""
    return {
        **provenance(kind),
        "engine": dict(description),
        "workload": dataclasses.asdict(workload),
        "repeats": len(runs),
        "quality": f"the checkpoint as it is, in {description['dtype']} with {description['activations']} activations; greedy",
        "output_tokens_per_second": spread([run.output_tokens / run.seconds for run in runs]),
        "total_tokens_per_second": spread([(run.prompt_tokens + run.output_tokens) / run.seconds for run in runs]),
        "requests_per_second": spread([len(run.e2e) / run.seconds for run in runs]),
        "seconds": spread([run.seconds for run in runs]),
        "cached_prompt_tokens": spread([run.cached_tokens for run in runs]),
        "ttft": percentiles([seconds for run in runs for seconds in run.ttft]),
        "itl": percentiles([seconds for run in runs for seconds in run.itl]),
        "e2e": percentiles([seconds for run in runs for seconds in run.e2e]),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return nearest-rank percentiles and the mean, or None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[-(-p * len(ordered) // 100) - 1] for p in PERCENTILES}
    return {**ranks, "mean": statistics.fmean(ordered)}


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the table for people: (figure, median, spread or percentiles)."""
    rows = []
    for name in ("output_tokens", "total_tokens", "requests"):
        rate = report[f"{name}_per_second"]
        rows.append((f"{name.replace('_', ' ')}/s", f"{rate['median']:.1f}", f"{rate['min']:.1f} to {rate['max']:.1f}"))
    for name in ("ttft", "itl", "e2e"):
        times = report[name]
        if times is not None:
            tail = ", ".join(f"p{p} {times[f'p{p}'] * 1e3:.1f}" for p in PERCENTILES[1:])
            rows.append((f"{name.upper()} ms", f"{times['p50'] * 1e3:.1f}", tail))
    return rows
