"""The Host header has to name this server."""

import asyncio
import itertools

import pytest
from tests.serving.safety.dummy_server import GETS, POSTS, Dummy, ask

from hasten.core.errors import InvalidOption
from hasten.serving.safety.authority import Authority, parse_authority
from hasten.serving.safety.hosts import HostCheck
from hasten.serving.server_options import ServerOptions

LOCAL = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.8.9.10",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]",
]
FOREIGN = [
    "evil.example", "localhost.evil.example", "evil.localhost", "127.0.0.1.nip.io", "10.0.0.1", "[2001:db8::1]", "0.0.0.0", "127.1",
    "2130706433", "0x7f.0.0.1", "0177.0.0.1", "localhostx", "local-host", "[::ffff:127.0.0.1]", "192.168.1.5:8000",
]  # fmt: skip
MALFORMED = [
    "", " ", "localhost:", "localhost:x", "localhost:80:80", "localhost:65536", "localhost:999999", "localhost/", "localhost/x",
    "@localhost", "user@localhost", "evil.example@localhost", "localhost@evil.example", "http://localhost",
    "localhost,evil.example", "localhost evil.example", "local\thost", "::1", "[::1", "::1]", "[]", "[localhost]",
    "[127.0.0.1]", "localhost?x", "localhost#x", "local%68ost", "loc\u00e9", "..", ".", ".localhost", "localhost..", "a..b",
    "localhost\\evil", "\"localhost\"", "localhost:８０", "[::1]x", "x[::1]", "[fe80::1%25eth0]",
]  # fmt: skip


def status(named: str, **options: object) -> tuple[int | None, list[str]]:
    server = Dummy(ServerOptions(**options))
    return asyncio.run(ask(server.app, "GET", "/v1/models", [(b"host", named.encode())])).status, server.reached


@pytest.mark.parametrize("host", LOCAL)
def test_loopback_names_pass(host: str) -> None:
    assert status(host) == (200, ["/v1/models"])


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(host: str) -> None:
    assert status(host) == (403, [])


@pytest.mark.parametrize("host", MALFORMED)
def test_malformed_hosts_are_refused(host: str) -> None:
    assert status(host) == (400, [])


def test_the_host_is_checked_on_every_route() -> None:
    async def sweep() -> None:
        server = Dummy()
        for path, method in itertools.product(
            [*GETS, *POSTS, "/openapi.json", "/unknown"], ["GET", "HEAD", "POST", "OPTIONS", "DELETE"]
        ):
            for headers, expected in (
                ([(b"host", b"evil.example")], 403),
                ([], 400),
                ([(b"host", b"localhost"), (b"host", b"localhost")], 400),
                ([(b"host", b"localhost"), (b"host", b"evil.example")], 400),
                ([(b"x-forwarded-host", b"localhost"), (b"host", b"evil.example")], 403),
            ):
                answer = await ask(server.app, method, path, headers)
                assert answer.status == expected, (path, method, headers)
        assert server.reached == []

    asyncio.run(sweep())


@pytest.mark.parametrize(
    ("options", "host", "expected"),
    [
        ({"allowed_hosts": ("chat.example",)}, "chat.example", 200),
        ({"allowed_hosts": ("chat.example",)}, "CHAT.example.:8443", 200),
        ({"allowed_hosts": ("chat.example",)}, "x.chat.example", 403),
        ({"allowed_hosts": ("chat.example:8443",)}, "chat.example:8443", 200),
        ({"allowed_hosts": ("chat.example:8443",)}, "chat.example", 403),
        ({"allowed_hosts": ("chat.example:8443",)}, "chat.example:80", 403),
        ({"allowed_hosts": ("*",)}, "evil.example", 200),
        ({"allowed_hosts": ("*",)}, "evil.example/", 400),
        ({"host": "gpu.internal"}, "gpu.internal:8000", 200),
        ({"host": "gpu.internal"}, "other.internal", 403),
        ({"host": "0.0.0.0"}, "192.168.1.5:8000", 200),  # an address is no rebound name
        ({"host": "0.0.0.0"}, "[2001:db8::1]:8000", 200),
        ({"host": "0.0.0.0"}, "evil.example", 403),
        ({"host": "::"}, "192.168.1.5", 200),
        ({"host": "::1"}, "192.168.1.5", 403),
        ({"host": "::1"}, "[::1]:8000", 200),
        ({"host": "127.0.0.2"}, "10.0.0.1", 403),
    ],
)
def test_options_allow_further_names(options: dict[str, object], host: str, expected: int) -> None:
    assert status(host, **options)[0] == expected


@pytest.mark.parametrize("name", ["http://chat.example", "chat.example/", "a b", "*.example.org", ".example.org", "x:99999"])
def test_allowed_hosts_have_to_be_names(name: str) -> None:
    with pytest.raises(InvalidOption, match="allowed_hosts has an invalid name"):
        HostCheck(ServerOptions(allowed_hosts=(name,)))


def test_authorities_are_compared_in_one_spelling() -> None:
    assert parse_authority("[2001:DB8:0:0::1]:80") == Authority("2001:db8::1", 80) == parse_authority("[2001:db8::1]:80")
    assert parse_authority("Example.ORG.") == Authority("example.org", None)
