"""``ServerState``: what all routes of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from hasten.serving.models.base import ModelRegistry
from hasten.serving.safety.admission import Admission
from hasten.serving.server_options import ServerOptions


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    options: ServerOptions
    models: ModelRegistry
    admission: Admission = field(default_factory=Admission)


def state_of(request: Request) -> ServerState:
    """Return the state of the server that got a request."""
    state = request.app.state.hasten
    assert isinstance(state, ServerState), type(state)
    return state
