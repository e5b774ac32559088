"""Errors in the form of Text Generation Inference."""

from __future__ import annotations

from hasten.serving.api_error import ApiError, ErrorKind

STATUS_OF = {400: 422}  # TGI answers 422 for a request that cannot run
_TYPES = {
    ErrorKind.AUTHENTICATION: "authentication",
    ErrorKind.PERMISSION: "permission",
    ErrorKind.NOT_FOUND: "not_found",
    ErrorKind.METHOD_NOT_ALLOWED: "method_not_allowed",
    ErrorKind.TIMEOUT: "timeout",
    ErrorKind.RATE_LIMIT: "overloaded",
    ErrorKind.INTERNAL: "incomplete_generation",
    ErrorKind.UNAVAILABLE: "unavailable",
}


class GenerationFailed(ApiError):
    """The model failed on a request that had begun: TGI's status 424."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorKind.INTERNAL, message, code="generation_failed")

    @property
    def status(self) -> int:
        return 424


def write_error(error: ApiError, request_id: str) -> dict[str, str]:
    """Return the body of an error, and of an event that ends a stream."""
    kind = "generation" if isinstance(error, GenerationFailed) else _TYPES.get(error.kind, "validation")
    return {"error": error.message, "error_type": kind}
