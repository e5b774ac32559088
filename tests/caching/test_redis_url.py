"""URLs of Redis servers: what they mean, and that no refusal shows a password."""

from __future__ import annotations

import pytest
import redis.connection
from hypothesis import given
from hypothesis import strategies as st

from hasten.caching.redis_url import RedisUrl, parse_redis_url
from hasten.core.errors import InvalidOption

URLS = [
    "redis://localhost",
    "redis://localhost:6380/3",
    "redis://:p%40ss%2F@cache.example:7000",
    "redis://user:secret@[::1]:7000/0",
    "redis://127.0.0.1?db=5",
    "rediss://user:secret@cache.example/2?ssl_ca_certs=/etc/ca.pem",
    "unix:///run/redis.sock",
    "unix:///run/redis.sock?db=4&password=p%20q&username=u",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_means_what_it_means_to_the_package(url: str) -> None:
    oracle = redis.connection.parse_url(url)
    kind = oracle.pop("connection_class", redis.connection.Connection)
    ours = parse_redis_url(url)
    values = {"host": ours.host, "port": ours.port, "path": ours.path, "db": ours.database, "username": ours.username}
    values |= {"password": ours.password, **ours.tls_files}
    assert {name: values[name] for name in oracle} == oracle
    default = RedisUrl()
    assert ours.port == oracle.get("port", default.port) and ours.database == oracle.get("db", 0)
    assert ours.tls is (kind is redis.connection.SSLConnection)
    assert (ours.path is not None) is (kind is redis.connection.UnixDomainSocketConnection)
    assert "secret" not in repr(ours) and "secret" not in ours.name


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis:",
        "redis://",
        "redis://:secret@",
        "redis://:secret@host:port",
        "redis://:secret@host:99999",
        "redis://:secret@host:0",
        "redis://:sec#ret@host",
        "redis://secret#@host",
        "redis://:secret@host#",
        "redis://:pass/secret@host:6379",
        "redis://:123/secret@host",
        "redis://:pass?secret@host",
        "redis://:secret@host/database",
        "redis://:secret@host/-1",
        "redis://:secret@host/1/2",
        "redis://:secret@host/99999999999999999999",
        "redis://:secret@host?db=x",
        "redis://:secret@host?socket_timeout=100",
        "redis://:secret@host?decode_responses=1",
        "redis://:secret@[::1",
        "rediss://:secret@host?ssl_cert_reqs=none",
        "unix://secret@/run/redis.sock",
        "unix://host/run/redis.sock",
        "unix://",
        "http://:secret@host",
        "redis-secret://host",
        "secret",
    ],
)
def test_a_url_that_cannot_be_is_refused_in_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_redis_url(url)
    message = str(caught.value)
    assert "secret" not in message and "ret@host" not in message and message.endswith(".")
    assert "redis://[[user]:password@]host[:port][/database]" in message


@given(st.text(max_size=40), st.sampled_from(["", "redis://", "rediss://h:1", "unix:///", "redis://u:p@h/", "redis://h?"]))
def test_any_text_is_a_url_or_refused(text: str, start: str) -> None:
    try:
        url = parse_redis_url(start + text)
    except InvalidOption:
        url = RedisUrl()
    assert url.path or (url.host and 0 < url.port < 65536)
    assert 0 <= url.database < 10**9
