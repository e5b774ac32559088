"""``ERRORS``: the errors of hasten's own routes in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorFacts(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorFacts


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request cannot run",
        401: "No API key, or a wrong one",
        403: "The caller may not do this",
        404: "No such model or template",
        413: "The body is too large",
        429: "The queue is full",
        503: "The model loads, has ended or drains",
    }.items()
}
