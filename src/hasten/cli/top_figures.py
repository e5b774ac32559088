"""``figures``: what ``hasten top`` shows, computed from two scrapes of a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hasten.cli.top_scrape import Scrape

LATENCIES = {
    "ttft": "vllm:time_to_first_token_seconds",
    "itl": "vllm:inter_token_latency_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
}
Buckets = Sequence[tuple[float, float]]


def figures(earlier: Scrape, later: Scrape, *, since_start: bool = False) -> dict[str, Any]:
    """Return the figures of a server and of each of its loaded models, as plain data; None: not measured.

    Rates are per second between the two scrapes, and so are percentiles and shares, unless ``since_start`` says that these are over
    all that the server has done.
    """
    base = Scrape(0.0, {}) if since_start else earlier
    return {
        "server": _server(earlier, later),
        "models": [_model(name, earlier, later, base) for name in later.models],
    }


def _model(name: str, earlier: Scrape, later: Scrape, base: Scrape) -> dict[str, Any]:
    labels = {"model_name": name}

    def rate(metric: str) -> float | None:
        return _rate(earlier, later, metric, **labels)

    def gain(metric: str) -> float | None:
        return _gain(base, later, metric, **labels)

    found: dict[str, Any] = {
        "model": name,
        "up": later.total("hasten_engine_up", **labels) == 1,
        "running": later.total("vllm:num_requests_running", **labels),
        "waiting": later.total("vllm:num_requests_waiting", **labels),
        "prompt_tokens_per_second": rate("vllm:prompt_tokens_total"),
        "output_tokens_per_second": rate("vllm:generation_tokens_total"),
        "requests_per_second": rate("vllm:request_success_total"),
        "kv_usage": later.total("vllm:kv_cache_usage_perc", **labels),
        "prefix_cache_hit_rate": _share(gain("vllm:prefix_cache_hits_total"), gain("vllm:prefix_cache_queries_total")),
        "result_cache_hit_rate": _result_cache_share(gain),
        "acceptance": _share(gain("vllm:spec_decode_num_accepted_tokens_total"), gain("vllm:spec_decode_num_draft_tokens_total")),
        "preemptions": gain("vllm:num_preemptions_total"),
    }
    for key, metric in LATENCIES.items():
        counted = _new_buckets(base.buckets(metric, **labels), later.buckets(metric, **labels))
        found |= {f"{key}_p50": quantile(0.5, counted), f"{key}_p95": quantile(0.95, counted)}
    return found | _process(earlier, later, process="engine", **labels)


def _result_cache_share(gain: Any) -> float | None:
    hits, misses, shared = (gain(f"hasten_result_cache_{name}_total") for name in ("hits", "misses", "shared"))
    return None if hits is None else _share(hits + shared, hits + misses)


def _server(earlier: Scrape, later: Scrape) -> dict[str, Any]:
    version = next((labels.get("version") for labels, _ in later.values("hasten_build_info")), None)
    rejected = {labels["reason"]: count for labels, count in later.values("hasten_requests_rejected_total") if "reason" in labels}
    return {
        "version": version,
        "in_flight": later.total("hasten_http_requests_in_flight"),
        "http_requests_per_second": _rate(earlier, later, "hasten_http_requests_total"),
        "rejected": {reason: count for reason, count in rejected.items() if count},
        "rejected_per_second": _rate(earlier, later, "hasten_requests_rejected_total"),
        "disconnects": later.total("hasten_http_disconnects_total"),
        **_process(earlier, later, process="frontend"),
    }


def _process(earlier: Scrape, later: Scrape, **labels: str) -> dict[str, Any]:
    """Return CPU seconds per second, and resident memory; None for an engine within the server's process."""
    return {
        "cpu": _rate(earlier, later, "hasten_process_cpu_seconds_total", **labels),
        "resident_bytes": later.total("hasten_process_resident_bytes", **labels),
    }


def _gain(base: Scrape, later: Scrape, name: str, **labels: str) -> float | None:
    """Return how much a counter has grown. One that has fallen began anew with its engine."""
    total, before = later.total(name, **labels), base.total(name, **labels) or 0.0
    if total is None:
        return None
    return total - before if total >= before else total


def _rate(earlier: Scrape, later: Scrape, name: str, **labels: str) -> float | None:
    seconds, gain = later.time - earlier.time, _gain(earlier, later, name, **labels)
    if gain is None or seconds <= 0 or earlier.total(name, **labels) is None:
        return None
    return gain / seconds


def _share(part: float | None, total: float | None) -> float | None:
    return None if part is None or not total else part / total


def _new_buckets(before: Buckets, after: Buckets) -> Buckets:
    """Return the observations between two scrapes.

    If the engine began anew in between, they are all of the later one.
    """
    known = dict(before)
    gained = [(bound, count - known.get(bound, 0.0)) for bound, count in after]
    return after if any(count < 0 for _, count in gained) else gained


def quantile(q: float, buckets: Buckets) -> float | None:
    """Return a quantile, linear within its bucket as Prometheus has it; None without observations.

    ``buckets``: rising bounds, the last one infinite, each with the number of observations up to it. Above the last finite bound
    that bound is returned.
    """
    if not buckets or not buckets[-1][1]:
        return None
    rank, low, below = q * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = (low if math.isinf(bound) else bound), count
    return low
