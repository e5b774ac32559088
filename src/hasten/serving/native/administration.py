"""``require_administrator``: the check of routes that change the server for all of its tenants."""

from __future__ import annotations

import hashlib
import ipaddress

from starlette.requests import Request

from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.caller import caller_of
from hasten.serving.server_state import state_of


def require_administrator(request: Request) -> None:
    """Raise ``ApiError`` (PERMISSION) unless the caller is an administrator."""
    if is_administrator(request):
        return
    remedy = "use a key of the server option admin_keys" if state_of(request).options.api_keys else "call it from this machine"
    raise ApiError(ErrorKind.PERMISSION, f"this route concerns all users of the server; {remedy}", code="not_an_administrator")


def is_administrator(request: Request) -> bool:
    """Return whether the caller's API key is one of ``admin_keys``.

    A server without API keys has no tenants: any caller on its own machine is an administrator.
    """
    options = state_of(request).options
    if options.api_keys:
        tenants = {hashlib.sha256(key.encode()).hexdigest() for key in options.admin_keys}
        return caller_of(request).tenant in tenants
    return request.client is not None and is_loopback(request.client.host)


def is_loopback(host: str) -> bool:
    """Return whether a client's address is one of this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
