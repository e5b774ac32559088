"""``metrics_surface``: ``GET /metrics``, in Prometheus's text format or OpenMetrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from fastapi import APIRouter
from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from hasten.serving.metrics.model_families import model_families
from hasten.serving.metrics.model_snapshot import ModelSnapshot, take_snapshot
from hasten.serving.metrics.server_families import process_families, server_families
from hasten.serving.openai.errors import write_error
from hasten.serving.server_state import ServerState, state_of
from hasten.serving.surface import Surface

PATH = "/metrics"
OPEN_METRICS = "application/openmetrics-text"
OPEN_METRICS_TYPE = f"{OPEN_METRICS}; version=1.0.0; charset=utf-8"
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_surface() -> Surface:
    """Return the route that Prometheus scrapes. It needs a key where other routes do."""
    router = APIRouter()
    router.add_api_route(PATH, metrics, methods=["GET"], response_class=Response, summary="Metrics for Prometheus")
    return Surface("metrics", router, (PATH,), write_error)


async def metrics(request: Request) -> Response:
    """Return the metrics of the server and of its loaded models, in the format that the client accepts."""
    state = state_of(request)
    snapshots = await asyncio.gather(*(take_snapshot(model) for model in state.models.loaded()))
    wants_open_metrics = OPEN_METRICS in request.headers.get("accept", "")
    encode, content_type = (_open_metrics, OPEN_METRICS_TYPE) if wants_open_metrics else (generate_latest, TEXT_TYPE)
    scrape = Scrape(state, snapshots)
    body = await asyncio.to_thread(encode, scrape)  # takes a few milliseconds, in which streams go on
    return Response(body, headers={"content-type": content_type})


def _open_metrics(scrape: Collector) -> bytes:
    # The client library's other ways to escape write "vllm_" for "vllm:"; no name here needs any.
    return bytes(openmetrics.generate_latest(scrape, escaping=openmetrics.ALLOWUTF8))


class Scrape(Collector):
    """All metric families of one scrape. Those without a sample are left out."""

    def __init__(self, state: ServerState, snapshots: Sequence[ModelSnapshot]) -> None:
        families = (
            *model_families(snapshots),
            *server_families(state.metrics, state.models.entries()),
            *process_families(snapshots),
        )
        self._families = [family for family in families if family.samples]

    def collect(self) -> Iterable[Metric]:
        return self._families
