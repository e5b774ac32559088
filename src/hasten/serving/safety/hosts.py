"""``HostCheck``: the Host header has to name this server.

A web page can give its own name the address 127.0.0.1 (DNS rebinding) and then read the answers of servers on its visitor's
machine. Its requests still carry the page's name in the Host header.
"""

from __future__ import annotations

from hasten.core.errors import InvalidOption
from hasten.serving.api_error import ApiError, ErrorKind, invalid
from hasten.serving.safety.authority import Authority, parse_authority
from hasten.serving.safety.request_head import RequestHead
from hasten.serving.server_options import ServerOptions


class HostCheck:
    """Names of the loopback interface, ``host`` and ``allowed_hosts`` pass.

    A server on an address beyond loopback also answers to IP addresses, because rebinding needs a name. The host "*" allows all.
    """

    def __init__(self, options: ServerOptions) -> None:
        """Raises ``InvalidOption`` for an allowed host that no Host header can be."""
        own = parse_authority(f"[{options.host}]" if ":" in options.host else options.host)
        self._allows_all = "*" in options.allowed_hosts
        self._allows_addresses = own is None or not own.is_loopback
        names = [_parse(name) for name in options.allowed_hosts if name != "*"] + [each for each in [own] if each is not None]
        self._names = {each.name for each in names if each.port is None}
        self._with_port = {each for each in names if each.port is not None}

    def check(self, head: RequestHead) -> Authority:
        """Return what the Host header says.

        Raises ``ApiError``: INVALID_REQUEST if it is absent, malformed or given twice; PERMISSION if it names another server.
        """
        value = head.one(b"host")
        if value is None:
            raise invalid("the request has no Host header")
        found = parse_authority(value.decode("latin-1"))
        if found is None:
            raise invalid("the Host header is not a host name or address with or without a port")
        if not self._is_allowed(found):
            message = f"the host {found.name[:80]!r} is not allowed; add it to allowed_hosts of the server if it is a name of it"
            raise ApiError(ErrorKind.PERMISSION, message, code="host_not_allowed")
        return found

    def _is_allowed(self, found: Authority) -> bool:
        if self._allows_all or found.is_loopback or found.name in self._names or found in self._with_port:
            return True
        return self._allows_addresses and found.address is not None


def _parse(name: str) -> Authority:
    found = parse_authority(name)
    if found is None:
        raise InvalidOption("allowed_hosts has an invalid name", got=name, allowed="names and addresses such as example.org:8000")
    return found
