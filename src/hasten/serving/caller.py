"""``Caller``: who sent a request, as the check of API keys found out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

STATE_KEY = "hasten_caller"  # in ``scope["state"]``


@dataclass(frozen=True, slots=True)
class Caller:
    """``tenant``: SHA-256 of the API key in hexadecimal digits; an empty text where no keys are asked for."""

    tenant: str = field(default="", repr=False)

    def cache_salt(self, request_salt: str = "") -> str:
        """Return the salt of a request's prefix and result caches.

        Requests of other keys share nothing with it.
        """
        if not request_salt:
            return self.tenant
        return hashlib.sha256(f"{self.tenant}\0{request_salt}".encode("utf-8", "surrogatepass")).hexdigest()


def set_caller(scope: Scope, caller: Caller) -> None:
    """Say who sent a request."""
    scope.setdefault("state", {})[STATE_KEY] = caller


def caller_of(request: Request) -> Caller:
    """Return the caller of a request; the one without a key if no check ran."""
    found = request.scope.get("state", {}).get(STATE_KEY)
    return found if isinstance(found, Caller) else Caller()
