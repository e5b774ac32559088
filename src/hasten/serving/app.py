"""``create_app``: the server as an ASGI application."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.core.version import __version__
from hasten.serving.api_error import ApiError, ErrorKind, as_api_error
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

log = logging.getLogger(__name__)
_KIND_OF = {kind.value: kind for kind in ErrorKind}


def create_app(state: ServerState, surfaces: Sequence[Surface]) -> FastAPI:
    """Return the application. The last surface writes the errors of paths that belong to none."""
    app = FastAPI(title="hasten", version=__version__, docs_url=None, redoc_url=None)
    app.state.hasten = state
    for surface in surfaces:
        app.include_router(surface.router)

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(request.scope["path"], _read(error), surfaces)

    for kind in (ApiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)
    return app


def error_response(path: str, error: ApiError, surfaces: Sequence[Surface]) -> Response:
    """Return the response for an error at ``path``, in the form of the surface that the path belongs to."""
    surface = next((each for each in surfaces if path.startswith(each.prefixes)), surfaces[-1])
    request_id = f"req_{secrets.token_hex(12)}"
    headers = {surface.request_id_header: request_id}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    status = (surface.status_of or {}).get(error.status, error.status)
    return JSONResponse(surface.write_error(error, request_id), status, headers)


def _read(error: Exception) -> ApiError:
    if isinstance(error, HTTPException):
        kind = _KIND_OF.get(error.status_code, ErrorKind.INVALID_REQUEST)
        return ApiError(kind, str(error.detail))
    if isinstance(error, RequestValidationError):
        return ApiError(ErrorKind.INVALID_REQUEST, "; ".join(str(each["msg"]) for each in error.errors()))
    found = as_api_error(error)
    if found.kind is ErrorKind.INTERNAL:
        log.error("a request failed", exc_info=error)
    return found
