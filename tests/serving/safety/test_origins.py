"""Web pages of other servers call this one only if they may."""

import asyncio
import itertools

import pytest
from tests.serving.safety.dummy_server import GETS, POSTS, Answer, Dummy, ask

from hasten.core.errors import InvalidOption
from hasten.serving.safety.origins import OriginCheck, parse_origin
from hasten.serving.server_options import ServerOptions

OWN = ["http://localhost:8000", "https://localhost:8000", "HTTP://LOCALHOST:8000"]
FOREIGN = [
    "https://evil.example", "http://localhost", "http://localhost:3000", "http://127.0.0.1:8000", "null", "file://",
    "http://evil.example:8000", "http://localhost:8000.evil.example", "http://localhost:8000/", "http://user@localhost:8000",
    "chrome-extension://abcdef", "", "localhost:8000", "http:localhost:8000", "http://localhost:8000, http://evil.example",
    "ftp://localhost:8000", "http://localhost:8000\\evil", "undefined", "*",
]  # fmt: skip
HOST = (b"host", b"localhost:8000")
PAGE = "https://chat.example"


def run(method: str, path: str, *headers: tuple[bytes, bytes], body: bytes = b"", **options: object) -> tuple[Answer, list[str]]:
    server = Dummy(ServerOptions(**options))
    return asyncio.run(ask(server.app, method, path, [HOST, *headers], body)), server.reached


@pytest.mark.parametrize("origin", OWN)
def test_own_pages_pass(origin: str) -> None:
    answer, reached = run("POST", "/reset_prefix_cache", (b"origin", origin.encode()))
    assert answer.status == 200 and reached


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("content_type", [b"text/plain", b"application/json"])
def test_pages_of_others_reach_no_route(origin: str, content_type: bytes) -> None:
    """Such a POST with text/plain is sent without a preflight."""
    headers = [(b"origin", origin.encode()), (b"content-type", content_type), (b"content-length", b"2")]
    answer, reached = run("POST", "/v1/completions", *headers, body=b"{}")
    assert answer.status == 403 and not reached
    assert answer.header(b"access-control-allow-origin") is None


def test_origins_are_checked_on_every_route() -> None:
    async def sweep() -> None:
        server = Dummy(ServerOptions(api_keys=("key",)))
        key = (b"authorization", b"Bearer key")
        for path, method in itertools.product(
            [*GETS, *POSTS, "/openapi.json", "/unknown"], ["GET", "HEAD", "POST", "OPTIONS", "DELETE"]
        ):
            for origins, expected in (([b"https://evil.example"], 403), ([b"http://localhost:8000"] * 2, 400)):
                headers = [HOST, key, *((b"origin", origin) for origin in origins)]
                assert (await ask(server.app, method, path, headers)).status == expected, (path, method, origins)
        assert server.reached == []

    asyncio.run(sweep())


def test_allowed_pages_may_read_answers_and_errors() -> None:
    options = {"allowed_origins": (PAGE,), "api_keys": ("key",)}
    headers = [(b"origin", PAGE.encode()), (b"authorization", b"Bearer key")]
    for sent, expected in ((headers, 200), (headers[:1], 401)):
        answer, _ = run("GET", "/v1/models", *sent, **options)
        assert answer.status == expected
        assert answer.header(b"access-control-allow-origin") == PAGE.encode() and answer.header(b"vary") == b"origin"
        assert answer.header(b"access-control-allow-credentials") is None
    answer, _ = run("GET", "/v1/models", headers[1], **options)
    assert answer.status == 200 and answer.header(b"access-control-allow-origin") is None


def test_a_star_allows_all_pages() -> None:
    answer, reached = run("GET", "/v1/models", (b"origin", b"https://any.example"), allowed_origins=("*",))
    assert answer.header(b"access-control-allow-origin") == b"*" and reached
    assert run("GET", "/v1/models", (b"origin", b"null"), allowed_origins=("*",))[0].status == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/unknown", "/health"])
def test_preflights_need_no_key(path: str) -> None:
    asked = [(b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization, content-type")]
    headers = [(b"origin", PAGE.encode()), *asked, (b"access-control-request-private-network", b"true")]
    answer, reached = run("OPTIONS", path, *headers, allowed_origins=(PAGE,), api_keys=("key",))
    assert answer.status == 204 and not reached and not answer.body
    assert answer.header(b"access-control-allow-origin") == PAGE.encode()
    assert answer.header(b"access-control-allow-headers") == b"authorization, content-type"
    assert b"POST" in (answer.header(b"access-control-allow-methods") or b"")
    assert answer.header(b"access-control-allow-private-network") == b"true"


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_only_a_preflight_passes_without_a_key(method: str) -> None:
    headers = [(b"origin", PAGE.encode())]
    if method != "OPTIONS":
        headers.append((b"access-control-request-method", b"POST"))
    answer, reached = run(method, "/v1/completions", *headers, allowed_origins=(PAGE,), api_keys=("key",))
    assert answer.status == 401 and not reached


def test_a_preflight_repeats_only_names_of_headers() -> None:
    headers = [
        (b"origin", PAGE.encode()),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"a\r\nx: y"),
    ]
    answer, _ = run("OPTIONS", "/v1/completions", *headers, allowed_origins=(PAGE,))
    assert answer.status == 204 and answer.header(b"access-control-allow-headers") is None


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "null", "https://", "https://*.example"])
def test_allowed_origins_have_to_be_origins(origin: str) -> None:
    with pytest.raises(InvalidOption, match="allowed_origins has an invalid origin"):
        OriginCheck(ServerOptions(allowed_origins=(origin,)))


def test_usual_ports_may_be_left_out() -> None:
    assert parse_origin("https://chat.example:443") == parse_origin("https://chat.example") != parse_origin("http://chat.example")
