"""Routes for those who watch the server: health, liveness, readiness and version.

They take no place in a queue. The first three need no key, so their answers name no model and no path.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.core.version import __version__
from hasten.serving.models.health import EngineStatus
from hasten.serving.server_state import state_of

PROBE_PATHS = ("/health", "/livez", "/readyz", "/version")
WATCHDOG = 300.0  # seconds without an answer of an engine, after which a restart of the server is the remedy

router = APIRouter(tags=["probes"])


@router.get("/health")
async def health(request: Request) -> Response:
    """Answer 200 if the engines answer, also while the server drains."""
    found = state_of(request).models.health()
    return _answer(found.engines is EngineStatus.READY, found.engines.value, found.reason)


@router.get("/livez")
async def livez(request: Request) -> Response:
    """Answer 200 as long as a restart of the server would help nothing.

    A full queue or a long prompt is no fault.
    """
    found = state_of(request).models.health()
    is_alive = found.unanswered_seconds <= WATCHDOG
    return _answer(is_alive, "alive" if is_alive else found.engines.value, "" if is_alive else found.reason)


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Answer 200 if new requests are served.

    That is not so while the first model loads, an engine is silent or restarts, or the server drains.
    """
    found = state_of(request).models.health()
    status = "draining" if found.is_draining else found.engines.value
    return _answer(found.is_ready, status, "the server is about to end" if found.is_draining else found.reason)


@router.get("/version")
async def version() -> dict[str, str]:
    """Return the version of hasten."""
    return {"version": __version__}


def _answer(is_good: bool, status: str, reason: str) -> Response:
    content: dict[str, Any] = {"status": status} | ({"reason": reason} if reason else {})
    return JSONResponse(content, 200 if is_good else 503, {"cache-control": "no-store"})
