"""``BodyLimits``: the type and the size of a request's body."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive

from hasten.serving.api_error import ApiError, ErrorKind, invalid
from hasten.serving.safety.request_head import RequestHead
from hasten.serving.server_options import ServerOptions


class BodyLimits:
    """JSON of at most ``max_body_bytes``, not compressed, that arrives within ``body_timeout``.

    The type has to be said: web pages can send bodies of other types, or without one, to any server without asking it first.
    ``num_open_bytes``: those of all requests that are not answered yet.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.max_bytes, self.max_open_bytes, self.timeout = (
            options.max_body_bytes,
            options.max_open_body_bytes,
            options.body_timeout,
        )
        self.num_open_bytes = 0

    def reader(self, head: RequestHead, receive: Receive) -> BodyReader:
        """Return what reads the body of one request.

        Raises ``ApiError`` for a head that announces a body over the limits.
        """
        length = head.one(b"content-length")
        if length is not None and not (length.isdigit() and len(length) <= 20):
            raise invalid("the header content-length is not a number")
        if length is not None and int(length) > self.max_bytes:
            raise _too_large(int(length), self.max_bytes)
        has_body = int(length or 0) > 0 or b"transfer-encoding" in head.headers
        if has_body:
            _check_type(head)
        return BodyReader(receive, self, has_body=has_body)


class BodyReader:
    """``receive`` of one request until its body is complete.

    Bytes are counted as they come, whatever the headers say.
    """

    def __init__(self, receive: Receive, limits: BodyLimits, *, has_body: bool) -> None:
        self._receive, self._limits = receive, limits
        self._num_bytes = 0
        self._deadline: float | None = None  # from the first part that is asked for
        self.is_complete = False
        self.has_body = has_body

    @property
    def is_pending(self) -> bool:
        """Whether the client may still send parts of the body."""
        return self.has_body and not self.is_complete

    async def read(self) -> Message:
        """Return the next message.

        Raises ``ApiError``: TOO_LARGE, TIMEOUT if the body takes too long, UNAVAILABLE if too many bodies are open.
        """
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._limits.timeout
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(ErrorKind.TIMEOUT, f"the body did not arrive within {self._limits.timeout:g} seconds") from None
        if message["type"] != "http.request":
            self.is_complete = True
            return message
        limits, num_new = self._limits, len(message.get("body", b""))
        self._num_bytes += num_new
        limits.num_open_bytes += num_new
        if self._num_bytes > limits.max_bytes:
            raise _too_large(self._num_bytes, limits.max_bytes)
        if limits.num_open_bytes > limits.max_open_bytes:
            text = "the bodies of all open requests have too many bytes"
            raise ApiError(ErrorKind.UNAVAILABLE, text, code="too_many_bodies", retry_after=1.0)
        self.is_complete = not message.get("more_body", False)
        return message

    def close(self) -> None:
        """Say that the request has ended, and its body is no longer kept."""
        self._limits.num_open_bytes -= self._num_bytes
        self._num_bytes = 0


def _check_type(head: RequestHead) -> None:
    if (head.one(b"content-encoding") or b"identity").lower() != b"identity":
        raise ApiError(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not accepted")
    media_type = (head.one(b"content-type") or b"").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise ApiError(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "the body needs the header content-type: application/json")


def _too_large(num_bytes: int, max_bytes: int) -> ApiError:
    return ApiError(ErrorKind.TOO_LARGE, f"the body has {num_bytes} bytes or more; allowed: up to {max_bytes}")
