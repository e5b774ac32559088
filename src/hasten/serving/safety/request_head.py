"""``RequestHead``: method, path and headers of a request, read once for all checks."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from hasten.serving.api_error import ApiError, ErrorKind, invalid
from hasten.serving.server_options import ServerOptions


@dataclass(frozen=True, slots=True)
class RequestHead:
    method: str
    path: str  # as the router compares it: percent signs decoded, nothing else changed
    scheme: str  # "http" or "https"
    headers: dict[bytes, list[bytes]]  # by name in lower case

    @classmethod
    def read(cls, scope: Scope, options: ServerOptions) -> RequestHead:
        """Return the head. Raises ``ApiError`` (HEADERS_TOO_LARGE) if it exceeds the limits of the options."""
        lines = scope["headers"]
        if len(lines) > options.max_headers:
            raise _too_large(f"the request has {len(lines)} headers; allowed: up to {options.max_headers}")
        num_bytes = len(scope.get("raw_path") or b"") + sum(len(name) + len(value) for name, value in lines)
        if num_bytes > options.max_header_bytes:
            raise _too_large(f"path and headers have {num_bytes} bytes; allowed: up to {options.max_header_bytes}")
        if (num_bytes := len(scope.get("query_string", b""))) > options.max_query_bytes:
            raise _too_large(f"the query string has {num_bytes} bytes; allowed: up to {options.max_query_bytes}")
        headers: dict[bytes, list[bytes]] = {}
        for name, value in lines:
            headers.setdefault(name.lower(), []).append(value)
        return cls(scope["method"], _route_path(scope), scope.get("scheme", "http"), headers)

    def one(self, name: bytes) -> bytes | None:
        """Return the value of a header; None if it is absent. Raises ``ApiError`` for several."""
        values = self.headers.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise invalid(f"the request has {len(values)} headers {name.decode('latin-1')}; allowed: one")
        return values[0].strip(b" \t")


def _route_path(scope: Scope) -> str:
    path: str = scope["path"]
    root_path: str = scope.get("root_path", "")
    is_below = path == root_path or path.startswith(root_path + "/")
    return path.removeprefix(root_path) if is_below else path


def _too_large(message: str) -> ApiError:
    return ApiError(ErrorKind.HEADERS_TOO_LARGE, message)
