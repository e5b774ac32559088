"""``KeyCheck``: the API key of a request, and whose it is."""

from __future__ import annotations

import hashlib
import hmac

from hasten.core.errors import InvalidOption
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.caller import Caller
from hasten.serving.safety.request_head import RequestHead

# The only paths that need no key. Any other spelling of them needs one, so no rewritten path gets past the check.
PROBES = frozenset({"/health", "/livez", "/readyz"})


class KeyCheck:
    """Keys are kept as SHA-256 digests; a digest is the tenant's name."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        """Raises ``InvalidOption`` for a key that no header can carry; the message does not have the key."""
        wrong = [index for index, key in enumerate(keys) if not (key.isascii() and key.isprintable() and " " not in key)]
        if wrong:
            allowed = "printable ASCII characters without spaces"
            raise InvalidOption(f"api_keys has keys that no header can carry, at {wrong[:8]}", allowed=allowed)
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, head: RequestHead) -> Caller:
        """Return who sends the request.

        Raises ``ApiError`` (AUTHENTICATION) without a right key, except for probes.
        """
        if not self._digests:
            return Caller()
        given = _given_keys(head)
        for key in given:
            if (tenant := self._tenant(key)) is not None:
                return Caller(tenant)
        if head.path in PROBES and head.method in ("GET", "HEAD"):
            return Caller()
        message = "the API key is not valid" if given else "an API key is needed, as Authorization: Bearer KEY or x-api-key: KEY"
        raise ApiError(ErrorKind.AUTHENTICATION, message, code="invalid_api_key")

    def _tenant(self, key: bytes) -> str | None:
        digest, found = hashlib.sha256(key).digest(), None
        for known in self._digests:  # all of them, so that the time says nothing about the keys
            if hmac.compare_digest(digest, known):
                found = known.hex()
        return found


def _given_keys(head: RequestHead) -> list[bytes]:
    """Return the keys of a request, the one of ``Authorization`` first.

    A header that stands twice gives none.
    """
    given = []
    for name in (b"authorization", b"x-api-key"):
        values = head.headers.get(name, [])
        if len(values) != 1:
            continue
        value = values[0].strip(b" \t")
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")
            value = value.strip(b" \t") if scheme.lower() == b"bearer" else b""
        if value:
            given.append(value)
    return given
