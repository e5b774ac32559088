"""Who is an administrator: the table of keys and addresses."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from hasten.core.errors import InvalidOption
from hasten.serving.api_error import ApiError
from hasten.serving.caller import STATE_KEY, Caller
from hasten.serving.native.administration import is_administrator, is_loopback, require_administrator
from hasten.serving.server_options import ServerOptions

KEYS = ("first", "second", "ключ")


def request_of(options: dict[str, Any], key: str | None, host: str | None) -> Request:
    state = {} if key is None else {STATE_KEY: Caller(hashlib.sha256(key.encode()).hexdigest())}
    app = SimpleNamespace(state=SimpleNamespace())
    client = None if host is None else (host, 50_000)
    request = Request({"type": "http", "headers": [], "app": app, "client": client, "state": state})
    from hasten.serving.server_state import ServerState

    app.state.hasten = ServerState(ServerOptions(**options), models=SimpleNamespace())  # type: ignore[arg-type]
    return request


@pytest.mark.parametrize(
    ("options", "key", "host", "is_allowed"),
    [
        ({}, None, "127.0.0.1", True),
        ({}, None, "::1", True),
        ({}, None, "10.0.0.2", False),
        ({}, None, None, False),
        ({"api_keys": KEYS}, "first", "127.0.0.1", False),
        ({"api_keys": KEYS[:1]}, "first", "127.0.0.1", False),
        ({"api_keys": KEYS, "admin_keys": KEYS[1:2]}, "first", "127.0.0.1", False),
        ({"api_keys": KEYS, "admin_keys": KEYS[1:2]}, "second", "10.0.0.2", True),
        ({"api_keys": KEYS, "admin_keys": KEYS[2:]}, "ключ", "10.0.0.2", True),
        ({"api_keys": KEYS, "admin_keys": KEYS[1:2]}, None, "127.0.0.1", False),
    ],
)
def test_the_key_decides_and_without_keys_the_address(
    options: dict[str, Any], key: str | None, host: str | None, is_allowed: bool
) -> None:
    request = request_of(options, key, host)
    assert is_administrator(request) is is_allowed
    if is_allowed:
        require_administrator(request)
    else:
        with pytest.raises(ApiError, match="admin_keys" if options else "this machine") as refused:
            require_administrator(request)
        assert refused.value.status == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("192.168.0.1", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_an_address_of_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_keys_of_administrators_are_api_keys_and_stay_secret() -> None:
    with pytest.raises(InvalidOption, match="admin_keys") as refused:
        ServerOptions(api_keys=("a-secret",), admin_keys=("another-secret",))
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(ServerOptions(api_keys=("a-secret",), admin_keys=("a-secret",)))
