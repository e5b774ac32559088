"""Errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

from hasten.serving.api_error import ApiError, ErrorKind

_TYPES = {
    ErrorKind.AUTHENTICATION: "authentication_error",
    ErrorKind.PERMISSION: "permission_error",
    ErrorKind.NOT_FOUND: "not_found_error",
    ErrorKind.RATE_LIMIT: "rate_limit_error",
    ErrorKind.INTERNAL: "server_error",
    ErrorKind.UNAVAILABLE: "service_unavailable_error",
}


def write_error(error: ApiError, request_id: str) -> dict[str, Any]:
    """Return the body of an error, and of an event that ends a stream."""
    kind = _TYPES.get(error.kind, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
