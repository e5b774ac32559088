"""Heads over the limits reach no route."""

import asyncio

import pytest
from tests.serving.safety.dummy_server import Dummy, ask

from hasten.serving.server_options import ServerOptions

HOST = (b"host", b"localhost")


def status(headers: list[tuple[bytes, bytes]], path: str = "/v1/models", query: bytes = b"", **options: object) -> int | None:
    server = Dummy(ServerOptions(**options))
    answer = asyncio.run(ask(server.app, "GET", path, [HOST, *headers], query_string=query))
    assert bool(server.reached) == (answer.status == 200)
    if answer.status == 431:
        assert answer.header(b"connection") == b"close" and b'"message"' in answer.body
    return answer.status


@pytest.mark.parametrize(("number", "expected"), [(63, 200), (64, 431), (10_000, 431)])
def test_number_of_headers(number: int, expected: int) -> None:
    assert status([(b"x-%d" % index, b"") for index in range(number)]) == expected


@pytest.mark.parametrize(("size", "expected"), [(60_000, 200), (65_536, 431), (5_000_000, 431)])
def test_size_of_headers(size: int, expected: int) -> None:
    assert status([(b"x", b"a" * size)]) == expected
    assert status([(b"a" * size, b"x")]) == expected


def test_the_path_counts() -> None:
    assert status([], "/" + "a" * 65_536) == 431


@pytest.mark.parametrize(("size", "expected"), [(8192, 200), (8193, 431)])
def test_size_of_the_query(size: int, expected: int) -> None:
    assert status([], query=b"a" * size) == expected


def test_limits_are_options() -> None:
    assert status([(b"x", b"a" * 2000)], max_header_bytes=1024) == 431
    assert status([(b"x-%d" % index, b"") for index in range(8)], max_headers=8) == 431
    assert status([], query=b"a", max_query_bytes=0) == 431
