"""``Authority``: host name and port, as in the Host header and in origins."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[0-9a-z_.-]{1,255})(?::([0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Authority(NamedTuple):
    name: str  # lower case, without the brackets of an IPv6 address and without the final dot of a name
    port: int | None  # None: not written

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The IP address that the name is; None if it is a name of the DNS."""
        try:
            return ipaddress.ip_address(self.name)
        except ValueError:
            return None

    @property
    def is_loopback(self) -> bool:
        address = self.address
        return self.name == "localhost" if address is None else address.is_loopback

    def port_for(self, scheme: str) -> int | None:
        """Return the port, or the usual one of the scheme; None for another scheme without a port."""
        return self.port if self.port is not None else _DEFAULT_PORTS.get(scheme)


def parse_authority(text: str) -> Authority | None:
    """Return the authority that a text is, such as ``[::1]:8000``; None for any other text."""
    match = _AUTHORITY.fullmatch(text.lower())
    if match is None:
        return None
    name, digits = match.groups()
    port = None if digits is None else int(digits)
    if port is not None and port > 65535:
        return None
    if name.startswith("["):
        address = Authority(name[1:-1], port).address
        return Authority(str(address), port) if address is not None and address.version == 6 else None
    labels = name.removesuffix(".").split(".")
    return Authority(".".join(labels), port) if all(labels) else None
