"""``server_families``: the metrics of the HTTP server, and of the processes that make it up."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import Metric
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from hasten.core.process_usage import process_usage
from hasten.core.version import __version__
from hasten.serving.metrics.model_families import ENGINE, buckets
from hasten.serving.metrics.model_snapshot import ModelSnapshot
from hasten.serving.metrics.server_metrics import REASONS, ServerMetrics
from hasten.serving.models.base import ModelEntry

PROCESS_LABELS = ("process", "model_name", "engine")


def server_families(metrics: ServerMetrics, entries: Sequence[ModelEntry]) -> Iterator[Metric]:
    """Yield the metric families of the HTTP server."""
    yield InfoMetricFamily("hasten_build", "Versions.", value=_versions())
    loaded = GaugeMetricFamily("hasten_model_loaded", "Whether a model of this server is loaded.", labels=("model_name",))
    for entry in entries:
        loaded.add_metric((entry.name,), entry.is_loaded)
    yield loaded
    yield from _request_families(metrics)
    yield GaugeMetricFamily("hasten_http_requests_in_flight", "HTTP requests that are being answered.", metrics.num_in_flight)
    if metrics.count_connections is not None:
        yield GaugeMetricFamily("hasten_http_connections", "Open connections of clients.", metrics.count_connections())
    for name, text, value in (
        ("hasten_http_disconnects", "HTTP requests whose client left before the end.", metrics.num_disconnects),
        ("hasten_http_received_bytes", "Bytes of request bodies.", metrics.received_bytes),
        ("hasten_http_sent_bytes", "Bytes of answers.", metrics.sent_bytes),
    ):
        yield CounterMetricFamily(name, text, value)


def _request_families(metrics: ServerMetrics) -> Iterator[Metric]:
    exact = CounterMetricFamily("hasten_http_requests", "HTTP requests.", labels=("route", "method", "status"))
    # The name and labels that dashboards of FastAPI servers use.
    coarse = CounterMetricFamily("http_requests", "HTTP requests by class of status.", labels=("handler", "method", "status"))
    seconds = HistogramMetricFamily(
        "http_request_duration_seconds", "Time from a request to the end of its answer.", labels=("handler", "method")
    )
    by_class: Counter[tuple[str, str, str]] = Counter()
    for (route, method, status), count in sorted(metrics.requests.items()):
        exact.add_metric((route, method, str(status)), count)
        by_class[route, method, f"{status // 100}xx"] += count
    for labels, count in by_class.items():
        coarse.add_metric(labels, count)
    for (route, method), histogram in sorted(metrics.seconds.items()):
        seconds.add_metric((route, method), buckets(histogram.as_dict()), histogram.sum)
    yield from (exact, coarse, seconds)
    rejected = CounterMetricFamily("hasten_requests_rejected", "HTTP requests that were refused, by reason.", labels=("reason",))
    for reason in sorted(set(REASONS.values())):  # also those that have not occurred: else a rate misses the first
        rejected.add_metric((reason,), metrics.rejected[reason])
    yield rejected


def process_families(snapshots: Sequence[ModelSnapshot]) -> Iterator[Metric]:
    """Yield CPU time and memory of this process, and of engines in processes of their own."""
    cpu = CounterMetricFamily("hasten_process_cpu_seconds", "CPU time, system calls included.", labels=PROCESS_LABELS)
    memory = GaugeMetricFamily("hasten_process_resident_bytes", "Resident memory.", labels=PROCESS_LABELS)

    def add(labels: tuple[str, str, str], usage: Mapping[str, Any]) -> None:
        cpu.add_metric(labels, usage["cpu_seconds"])
        if usage["resident_bytes"] is not None:
            memory.add_metric(labels, usage["resident_bytes"])

    add(("frontend", "", ""), process_usage())
    for each in snapshots:
        if each.stats is not None and each.stats["process"]["pid"] != os.getpid():
            add(("engine", each.name, ENGINE), each.stats["process"])
    yield from (cpu, memory)


@cache
def _versions() -> dict[str, str]:
    found = {"version": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
