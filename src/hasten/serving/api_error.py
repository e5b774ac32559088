"""``ApiError``: what a route answers instead of a result. Each surface writes it in its own form."""

from __future__ import annotations

import enum

from hasten.core.errors import CapacityError, HastenError, InvalidOption, InvalidRequest, PromptTooLong


class ErrorKind(enum.Enum):
    """The kinds of errors, with their HTTP status."""

    INVALID_REQUEST = 400
    AUTHENTICATION = 401
    PERMISSION = 403
    NOT_FOUND = 404
    METHOD_NOT_ALLOWED = 405
    TIMEOUT = 408
    TOO_LARGE = 413
    UNSUPPORTED_MEDIA_TYPE = 415
    RATE_LIMIT = 429  # the queue is full, or the wait was too long
    HEADERS_TOO_LARGE = 431
    INTERNAL = 500
    UNAVAILABLE = 503  # the model loads, has ended or drains


class ApiError(Exception):
    """``code``: OpenAI's word for it, such as ``context_length_exceeded``; ``param``: the field at fault."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """``retry_after``: seconds; None: a retry fails as well, or it is not known."""
        super().__init__(message)
        self.kind, self.message, self.param, self.code, self.retry_after = kind, message, param, code, retry_after

    @property
    def status(self) -> int:
        return self.kind.value


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that cannot run."""
    return ApiError(ErrorKind.INVALID_REQUEST, message, param=param, code=code)


def as_api_error(error: BaseException) -> ApiError:
    """Return the error that a route answers for an exception. Bugs become an error 500 without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return invalid(str(error), code="context_length_exceeded")
    if isinstance(error, InvalidRequest | InvalidOption):  # an option: the model was loaded without what the request needs
        return invalid(str(error))
    if isinstance(error, CapacityError):
        return ApiError(ErrorKind.RATE_LIMIT, str(error), code="capacity_exceeded", retry_after=1.0)
    if isinstance(error, HastenError):  # the engine has ended; how is for the server's log
        return ApiError(ErrorKind.UNAVAILABLE, error.what, code="engine_unavailable", retry_after=1.0)
    return ApiError(ErrorKind.INTERNAL, "the server failed on this request; its log says why", code="internal_error")
