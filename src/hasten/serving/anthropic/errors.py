"""Errors in Anthropic's form, as bodies and as events of a stream.

A full queue, and an engine that loads or drains, are 529 ``overloaded_error``: the load of the server is at fault and not the
caller's rate, and clients retry it after ``retry-after`` as they retry 429. A ``rate_limit_error`` is a limit of one caller.
"""

from __future__ import annotations

from typing import Any

from hasten.serving.api_error import ApiError, ErrorKind

_TYPES = {
    ErrorKind.AUTHENTICATION: "authentication_error",
    ErrorKind.PERMISSION: "permission_error",
    ErrorKind.NOT_FOUND: "not_found_error",
    ErrorKind.TIMEOUT: "timeout_error",
    ErrorKind.TOO_LARGE: "request_too_large",
    ErrorKind.RATE_LIMIT: "rate_limit_error",
    ErrorKind.INTERNAL: "api_error",
    ErrorKind.UNAVAILABLE: "overloaded_error",
}
OVERLOADED = 529
STATUS_OF = {ErrorKind.TIMEOUT.value: 504, ErrorKind.UNAVAILABLE.value: OVERLOADED}
STATUS_OF_CODE = dict.fromkeys(("queue_full", "queue_timeout", "capacity_exceeded"), OVERLOADED)


def write_error(error: ApiError, request_id: str) -> dict[str, Any]:
    """Return the body of an error, and of the event that ends a stream."""
    kind = "overloaded_error" if error.code in STATUS_OF_CODE else _TYPES.get(error.kind, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
