"""``open_listener``: the socket of a server, and who can reach it."""

from __future__ import annotations

import ipaddress
import os
import socket

from hasten.core.errors import InvalidOption
from hasten.serving.server_options import ServerOptions

BACKLOG = 2048  # connections that wait until the server accepts them


def open_listener(options: ServerOptions) -> socket.socket:
    """Return a socket that listens on the host and port of the options.

    Raises ``InvalidOption`` for an address that cannot be used, and for one beyond this machine without a key.
    """
    family, address = protected_address(options)
    try:
        is_dual = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=is_dual)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        got = f"{url_of(address)}: {reason}"
        raise InvalidOption("the server cannot listen", got=got, remedy="Choose another --host or --port") from None


def protected_address(options: ServerOptions) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return family and address of the host.

    Raises ``InvalidOption`` for one beyond this machine without a key.
    """
    family, address = _resolve(options)
    is_loopback = ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
    if not (is_loopback or options.api_keys or options.insecure):
        raise InvalidOption(
            "other machines can reach this host and no API key protects it",
            got=options.host,
            remedy="Give --api-key-file, or leave --host out, or accept that with --insecure",
        )
    return family, address


def url_of(address: tuple[str, int]) -> str:
    """Return the URL of an address, such as http://127.0.0.1:8000 or http://[::1]:8000."""
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(options: ServerOptions) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return family and address of the host: its first IPv4 address if it has one."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidOption("the host has no address", got=f"{options.host}: {error}", remedy="Correct --host") from None
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, (str(address[0]), int(address[1]))
