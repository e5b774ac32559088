"""``ServerState``: what all routes of a server share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from starlette.requests import Request

from hasten.serving.metrics.server_metrics import ServerMetrics
from hasten.serving.models.base import ModelRegistry
from hasten.serving.safety.admission import Admission
from hasten.serving.server_options import ServerOptions


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    options: ServerOptions
    models: ModelRegistry
    admission: Admission = field(default_factory=Admission)
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    # Parses large bodies, one after the other: several threads would leave the event loop less of the interpreter's lock.
    parser_thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="hasten-json"))


def state_of(request: Request) -> ServerState:
    """Return the state of the server that got a request."""
    state = request.app.state.hasten
    assert isinstance(state, ServerState), type(state)
    return state
