"""Only probes are open, however a path, a method or a host is written."""

import asyncio
import hashlib
import hmac
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.safety.dummy_server import GETS, POSTS, Answer, Dummy, ask

from hasten.core.errors import InvalidOption
from hasten.serving.safety import keys as keys_module
from hasten.serving.safety.keys import KeyCheck
from hasten.serving.server_options import ServerOptions

KEY, OTHER = "sk-first-key", "sk-second-key"
PROBES = {"/health", "/livez", "/readyz"}
HOST = (b"host", b"localhost:8000")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "Get"]
MUTATIONS = [
    "{}/", "/{}", "/.{}", "/..{}", "{}/.", "{}/..", "{}//", "{}?", "{}%20", "{} ", "{}\t", "{}\n", "{};a=b", "{}#", "{}.",
    "{}\\", "{}\x00", "/health{}", "/health/..{}", "/livez/../{}", "/health;{}", "/health/.{}", "/health%2f..{}",
    "/health\\..{}", "/readyz//{}", "http://localhost{}", "//localhost{}", "{}%2f", "/%2e%2e{}", "{}/%2e", "", "*", "/*",
]  # fmt: skip


def dummy(**options: object) -> Dummy:
    return Dummy(ServerOptions(api_keys=(KEY, OTHER), **options))


def run(server: Dummy, method: str, path: str, *headers: tuple[bytes, bytes], **scope: object) -> Answer:
    return asyncio.run(ask(server.app, method, path, [HOST, *headers], **scope))


def spellings(path: str) -> list[str]:
    upper = [path.upper(), path.title(), path.swapcase()]
    return [
        path,
        *upper,
        *(mutation.format(path) for mutation in MUTATIONS),
        *(mutation.format(path.upper()) for mutation in MUTATIONS),
    ]


@pytest.mark.parametrize("path", [*GETS, *POSTS, "/openapi.json", "/docs", "/unknown"])
def test_no_spelling_of_a_path_gets_past_the_check(path: str) -> None:
    server = dummy()

    async def sweep() -> None:
        for spelling in spellings(path):
            for method in METHODS:
                answer = await ask(server.app, method, spelling, [HOST])
                is_open = spelling in PROBES and method in ("GET", "HEAD")
                assert (answer.status == 401) != is_open, (method, spelling, answer)
                assert answer.is_complete

    asyncio.run(sweep())
    assert set(server.reached) <= PROBES


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("/.%2eEfhealtivzrdyHEALTH\\;?#:@ \t\x00é"), max_size=14), st.sampled_from(METHODS))
def test_random_paths_do_not_get_past_the_check(path: str, method: str) -> None:
    server = dummy()
    answer = run(server, method, path)
    assert answer.status == 401 or (path in PROBES and method in ("GET", "HEAD")), (path, method)
    assert set(server.reached) <= PROBES


def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check by the beginning of the path, and one by its lower case, let mutations pass."""
    for fault in (lambda path: path.startswith("/health"), lambda path: path.rstrip("/").lower() == "/health"):

        class Faulty(frozenset):  # fmt: skip
            def __contains__(self, path: object, fault: object = fault) -> bool:
                return fault(path)

        with monkeypatch.context() as patch:
            patch.setattr(keys_module, "PROBES", Faulty())
            with pytest.raises(AssertionError):
                test_no_spelling_of_a_path_gets_past_the_check("/health")


@pytest.mark.parametrize("root_path", ["/api", "/health", "/livez/"])
def test_a_root_path_opens_nothing_else(root_path: str) -> None:
    server = dummy()
    for path in ("/metrics", "/v1/models", "", "/", "/health/metrics"):
        assert run(server, "GET", root_path + path, root_path=root_path).status == 401, path
    answer = run(server, "GET", root_path.rstrip("/") + "/health", root_path=root_path.rstrip("/"))
    assert answer.status == 200, answer


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ([(b"authorization", b"Bearer " + KEY.encode())], KEY),
        ([(b"authorization", b"bearer   " + KEY.encode() + b" ")], KEY),
        ([(b"Authorization", b"BEARER " + KEY.encode())], KEY),
        ([(b"x-api-key", OTHER.encode())], OTHER),
        ([(b"x-api-key", b"of another service"), (b"authorization", b"Bearer " + KEY.encode())], KEY),
        ([(b"x-api-key", OTHER.encode()), (b"authorization", b"Bearer " + KEY.encode())], KEY),
        ([(b"x-api-key", OTHER.encode()), (b"authorization", b"Basic abc")], OTHER),
        ([(b"authorization", KEY.encode())], None),
        ([(b"authorization", b"Basic " + KEY.encode())], None),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"Bearer " + KEY.encode()[:-1])], None),
        ([(b"authorization", b"Bearer " + KEY.encode() + b"\x00")], None),
        ([(b"authorization", b"Bearer " + KEY.upper().encode())], None),
        ([(b"authorization", b"Bearer " + KEY.encode() + b"," + OTHER.encode())], None),
        ([(b"authorization", b"Bearer " + KEY.encode()), (b"authorization", b"Bearer wrong")], None),
        ([(b"x-api-key", b"wrong"), (b"x-api-key", KEY.encode())], None),
        ([(b"x-api-key", b"\xff\xfe")], None),
        ([(b"api-key", KEY.encode())], None),
        ([(b"cookie", KEY.encode())], None),
        ([], None),
    ],
)
def test_keys_are_read_from_two_headers(headers: list[tuple[bytes, bytes]], tenant: str | None) -> None:
    answer = run(dummy(), "GET", "/v1/models", *headers)
    if tenant is None:
        assert answer.status == 401 and answer.header(b"www-authenticate") == b"Bearer"
    else:
        assert answer.status == 200 and hashlib.sha256(tenant.encode()).hexdigest().encode() in answer.body


def test_a_key_in_the_query_is_none() -> None:
    assert run(dummy(), "GET", "/v1/models", query_string=b"api_key=" + KEY.encode()).status == 401


def test_without_keys_all_are_one_tenant() -> None:
    answer = run(Dummy(), "GET", "/v1/models", (b"authorization", b"Bearer anything"))
    assert answer.status == 200 and b'"tenant":""' in answer.body


def test_errors_have_the_form_of_their_surface() -> None:
    server = dummy()
    openai, anthropic = run(server, "POST", "/v1/completions"), run(server, "POST", "/v1/messages")
    assert b'"type":"authentication_error"' in openai.body and openai.header(b"x-request-id")
    assert b'"type":"error"' in anthropic.body and anthropic.header(b"request-id")


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return hmac.compare_digest(left, right)

    class Hmac:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(keys_module, "hmac", Hmac)
    server = dummy()
    for key in (KEY, OTHER, "wrong"):
        compared.clear()
        run(server, "GET", "/v1/models", (b"x-api-key", key.encode()))
        digest = hashlib.sha256(key.encode()).digest()
        assert compared == [(digest, hashlib.sha256(each.encode()).digest()) for each in (KEY, OTHER)]  # all keys, whichever it is


def test_keys_stand_in_no_error_log_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        server = dummy()
        answers = [run(server, "POST", "/v1/completions", (b"x-api-key", key)) for key in (KEY.encode(), b"sk-wrong-key")]
    shown = repr([answer.body for answer in answers[1:]]) + caplog.text + repr(server.options) + repr(vars(server.app))
    for key in (KEY, OTHER, "sk-wrong-key"):
        assert key not in shown and hashlib.sha256(key.encode()).hexdigest() not in shown


@pytest.mark.parametrize("key", ["two words", "tab\t", "é", "line\nbreak", "nul\0"])
def test_keys_that_no_header_carries_are_refused_without_showing_them(key: str) -> None:
    with pytest.raises(InvalidOption, match=r"api_keys has keys that no header can carry, at \[1\]") as caught:
        KeyCheck((KEY, key))
    assert key not in str(caught.value) and KEY not in str(caught.value)
