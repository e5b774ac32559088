"""Fixtures of the tests of result caches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.caching.fault_proxy import FaultProxy
from tests.caching.redis_server import RedisServer


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """Return a server of this test process, without data. Tests that kill or configure one start their own."""
    with shared_redis_server.client() as client:
        client.flushall()
    return shared_redis_server


@pytest.fixture
def own_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Return a server of this test alone."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def fault_proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """Return a proxy in front of ``redis_server``."""
    proxy = FaultProxy(redis_server.path)
    yield proxy
    proxy.close()
