"""``OriginCheck``: which web pages may call the server, and what their browsers are told (CORS).

Browsers name the page's origin in each request that a page of another server sends, except for plain GET requests, whose answers
the page cannot read. So a request without the header comes from a program or from the server's own pages.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from hasten.core.errors import InvalidOption
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.safety.authority import Authority, parse_authority
from hasten.serving.safety.request_head import RequestHead
from hasten.serving.server_options import ServerOptions

Headers = list[tuple[bytes, bytes]]

METHODS = b"GET, POST, DELETE, OPTIONS"
EXPOSED = b"x-request-id, request-id, retry-after"
PREFLIGHT_SECONDS = b"600"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}", re.ASCII)
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_, -]{1,2048}")


class Origin(NamedTuple):
    scheme: str
    name: str
    port: int | None


class OriginCheck:
    """The server's own pages and ``allowed_origins`` pass; "*" allows all."""

    def __init__(self, options: ServerOptions) -> None:
        """Raises ``InvalidOption`` for an allowed origin that no page can have."""
        self._allows_all = "*" in options.allowed_origins
        self._allowed = {_parse_option(text) for text in options.allowed_origins if text != "*"}

    def check(self, head: RequestHead, host: Authority) -> Headers:
        """Return the headers of the answer that let the page read it; none without an Origin header.

        Raises ``ApiError`` (PERMISSION) if pages of this origin may not call the server.
        """
        value = head.one(b"origin")
        if value is None:
            return []
        origin = parse_origin(value.decode("latin-1"))
        if not self._allows_all and (origin is None or not self._is_allowed(origin, host)):
            message = "web pages of this origin may not call this server; add it to allowed_origins of the server if they may"
            raise ApiError(ErrorKind.PERMISSION, message, code="origin_not_allowed")
        if self._allows_all:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        allowed = (b"access-control-allow-origin", value)
        return [allowed, (b"vary", b"origin"), (b"access-control-expose-headers", EXPOSED)]

    def preflight(self, head: RequestHead) -> Headers | None:
        """Return the further headers of the answer to a preflight; None if the request is none.

        Browsers send no key with it.
        """
        if head.method != "OPTIONS" or head.one(b"origin") is None or head.one(b"access-control-request-method") is None:
            return None
        answer = [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", PREFLIGHT_SECONDS)]
        asked = head.one(b"access-control-request-headers")
        if asked is not None and _HEADER_NAMES.fullmatch(asked):
            answer.append((b"access-control-allow-headers", asked))
        if head.one(b"access-control-request-private-network") is not None:  # from a page of the internet
            answer.append((b"access-control-allow-private-network", b"true"))
        return answer

    def _is_allowed(self, origin: Origin, host: Authority) -> bool:
        own = Origin(origin.scheme, host.name, host.port_for(origin.scheme))
        return origin in self._allowed or (origin.scheme in ("http", "https") and origin == own)


def parse_origin(text: str) -> Origin | None:
    """Return the origin that a text is, such as ``https://example.org``; None for other texts."""
    scheme, separator, rest = text.lower().partition("://")
    authority = parse_authority(rest)
    if not separator or authority is None or not _SCHEME.fullmatch(scheme):
        return None
    return Origin(scheme, authority.name, authority.port_for(scheme))


def _parse_option(text: str) -> Origin:
    origin = parse_origin(text)
    if origin is None:
        allowed = '"*", and origins such as https://chat.example.org:8443, without a path'
        raise InvalidOption("allowed_origins has an invalid origin", got=text, allowed=allowed)
    return origin
