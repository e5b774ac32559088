"""``create_app``: the server as an ASGI application."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from hasten.core.errors import HastenError
from hasten.core.version import __version__
from hasten.serving.api_error import ApiError, ErrorKind, as_api_error
from hasten.serving.event_json import event_json
from hasten.serving.log_failure import log_failure
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

log = logging.getLogger(__name__)
CLIENT_LEFT = 499  # a status that no client sees
_KIND_OF = {kind.value: kind for kind in ErrorKind}


def create_app(state: ServerState, surfaces: Sequence[Surface]) -> FastAPI:
    """Return the application. The last surface writes the errors of paths that belong to none."""
    app = FastAPI(title="hasten", version=__version__, docs_url=None, redoc_url=None)
    app.state.hasten = state
    for surface in surfaces:
        app.include_router(surface.router)

    async def answer(request: Request, error: Exception) -> Response:
        response = error_response(request.scope["path"], _read(error), surfaces)
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})  # such as Allow of status 405
        return response

    async def leave(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    # Of an exception that only ``Exception`` stands for, Starlette closes the connection after the answer.
    for kind in (ApiError, HastenError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientDisconnect, leave)
    return app


def error_response(path: str, error: ApiError, surfaces: Sequence[Surface]) -> Response:
    """Return the response for an error at ``path``, in the form of the surface that the path belongs to."""
    surface = _surface_of(path, surfaces)
    request_id = f"req_{secrets.token_hex(12)}"
    headers = {surface.request_id_header: request_id}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    status = (surface.status_of or {}).get(error.status, error.status)
    status = (surface.status_of_code or {}).get(error.code or "", status)
    return JSONResponse(surface.write_error(error, request_id), status, headers)


def error_event(path: str, error: ApiError, surfaces: Sequence[Surface]) -> bytes:
    """Return the event that ends a stream at ``path`` with an error.

    A body with a type, as Anthropic's have, names its event.
    """
    body = _surface_of(path, surfaces).write_error(error, f"req_{secrets.token_hex(12)}")
    name = f"event: {body['type']}\n" if isinstance(body.get("type"), str) else ""
    return f"{name}data: {event_json(body)}\n\n".encode()


def _surface_of(path: str, surfaces: Sequence[Surface]) -> Surface:
    return next((each for each in surfaces if each.owns(path)), surfaces[-1])


def _read(error: Exception) -> ApiError:
    if isinstance(error, HTTPException):
        kind = _KIND_OF.get(error.status_code, ErrorKind.INVALID_REQUEST)
        return ApiError(kind, str(error.detail))
    if isinstance(error, RequestValidationError):
        return ApiError(ErrorKind.INVALID_REQUEST, "; ".join(str(each["msg"]) for each in error.errors()))
    found = as_api_error(error)
    if found.kind is ErrorKind.INTERNAL:
        log_failure(log, error)
    return found
