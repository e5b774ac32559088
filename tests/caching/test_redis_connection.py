"""Time limits of calls to Redis, and which connections are used again."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from tests.caching.fault_proxy import FaultProxy
from tests.caching.redis_server import RedisServer

from hasten.caching.base import StoreFailed, StoreLimits, StoreUsage
from hasten.caching.redis_store import RedisStore

LIMIT = 0.05  # seconds
BUSY = 5.0  # seconds that such a call may take on a busy machine; without a limit each takes longer, or forever
A, B = b"a" * 32, b"b" * 32


def limits(timeout: float = LIMIT) -> StoreLimits:
    return StoreLimits(ttl=60, max_bytes=1, max_entries=1, eviction="lru", timeout=timeout)


@contextmanager
def store(url: str, timeout: float = LIMIT) -> Iterator[RedisStore]:
    opened = RedisStore(url, limits(timeout))
    yield opened
    opened.close()


@contextmanager
def one_reply(reply: bytes) -> Iterator[str]:
    """Yield the URL of a server that answers whatever it gets with ``reply``, and then ends the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def fails_in_time(call: Callable[[], Any], match: str = "did not answer within 0.05 s") -> None:
    start = time.monotonic()
    with pytest.raises(StoreFailed, match=match):
        call()
    assert time.monotonic() - start < BUSY


def test_a_server_that_accepts_and_never_answers_is_given_up_in_time(fault_proxy: FaultProxy) -> None:
    fault_proxy.hold()
    for url in (fault_proxy.url, fault_proxy.url.replace("//", "//:password@"), fault_proxy.url + "/1"):
        with store(url) as cache:
            for call in (lambda: cache.get(A), lambda: cache.put(A, b"x"), cache.usage, cache.clear, lambda: cache.remove(A)):
                fails_in_time(call)


def test_a_reply_that_trickles_is_given_up_in_time(fault_proxy: FaultProxy, redis_server: RedisServer) -> None:
    with store(redis_server.url, BUSY) as cache:
        cache.put(A, os.urandom(20_000))
    fault_proxy.piece_size, fault_proxy.delay = 1, lambda: LIMIT / 10  # 100 seconds
    with store(fault_proxy.url) as cache:
        fails_in_time(lambda: cache.get(A))


def test_a_server_that_does_not_read_is_given_up_in_time() -> None:
    """The kernel accepts the connection for a server that is stopped, until its queue is full."""
    with socket.create_server(("127.0.0.1", 0)) as listener, store(f"redis://127.0.0.1:{listener.getsockname()[1]}") as cache:
        fails_in_time(lambda: cache.put(A, bytes(1 << 26)))


def test_a_name_whose_lookup_hangs_is_given_up_in_time(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    before = set(threading.enumerate())

    def lookup(*arguments: object) -> list[Any]:
        answered.wait(60)
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with store("redis://cache.example") as cache:
        fails_in_time(lambda: cache.get(A))
        late = set(threading.enumerate()) - before
        answered.set()
        for thread in late:
            thread.join(60)
        fails_in_time(lambda: RedisStore("redis://cache.example", limits(BUSY)).get(A), match="Name or service not known")
    assert len(late) == 1 and not any(thread.is_alive() for thread in late)


def test_a_connection_that_comes_too_late_is_closed(fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, lookup = threading.Event(), socket.getaddrinfo
    before = set(threading.enumerate())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: (resolved.wait(60), lookup(*arguments))[1])
    with store(fault_proxy.url) as cache:
        fails_in_time(lambda: cache.get(A))
        resolved.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
        assert not cache._idle  # pytest reports a socket that is left open


def test_an_unreachable_server_fails_the_calls_and_not_the_opening() -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        with store(f"redis://:secret@127.0.0.1:{taken.getsockname()[1]}", BUSY) as cache, pytest.raises(StoreFailed) as caught:
            cache.get(A)
    assert "refused" in str(caught.value) and "secret" not in str(caught.value)
    with store("unix:///no/such/socket", BUSY) as cache:
        fails_in_time(lambda: cache.get(A), match="No such file")


def test_a_reply_that_comes_too_late_answers_no_other_call(fault_proxy: FaultProxy) -> None:
    with store(fault_proxy.url) as cache:
        for _ in range(20):
            with store(fault_proxy.url, BUSY) as patient:
                patient.put(A, b"value of a")
                patient.put(B, b"value of b")
            fault_proxy.hold()
            fails_in_time(lambda: cache.get(A))
            fault_proxy.release()
            for attempt in range(50):
                try:
                    assert cache.get(B) == b"value of b"
                    break
                except StoreFailed:  # the machine is busy
                    assert attempt < 49


def test_connections_are_used_again(fault_proxy: FaultProxy) -> None:
    with store(fault_proxy.url, BUSY) as cache:
        for _ in range(10):
            cache.put(A, b"x")
            assert cache.get(A) == b"x"
    assert fault_proxy.num_accepted == 1


def test_reset_connections_fail_one_call_at_most(fault_proxy: FaultProxy) -> None:
    with store(fault_proxy.url, BUSY) as cache:
        cache.put(A, b"x")
        fault_proxy.reset()
        assert cache.get(A) == b"x"  # the idle connection was seen to be closed
        fault_proxy.hold()
        failures: list[StoreFailed] = []

        def read() -> None:
            try:
                cache.get(A)
            except StoreFailed as error:
                failures.append(error)

        accepted = fault_proxy.num_accepted
        thread = threading.Thread(target=read)
        thread.start()
        while thread.is_alive():  # until the command is on its way, a reset goes unnoticed
            fault_proxy.reset()
            thread.join(0.01)
        assert failures == [] or "reset" in str(failures[0]).lower() or "closed" in str(failures[0])
        fault_proxy.release()
        assert cache.get(A) == b"x"
        assert fault_proxy.num_accepted > accepted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the collector closes what an interrupt left open
@pytest.mark.parametrize("place", ["connected", "new"])
def test_a_call_that_is_interrupted_anywhere_answers_no_other_call(
    place: str, fault_proxy: FaultProxy, redis_server: RedisServer
) -> None:
    """Ctrl-C comes at every line of a call in turn, while its reply is on its way."""
    url = fault_proxy.url + "/1"  # choosing a database is a round trip of a new connection
    with store(redis_server.url + "?db=1", BUSY) as cache:
        cache.put(A, b"value of a")
        cache.put(B, b"value of b")
    fault_proxy.delay = lambda: 0.001
    interrupted = line = 0
    cache = RedisStore(url, limits(BUSY))
    while True:
        if place == "new":
            cache.close()
            cache = RedisStore(url, limits(BUSY))
        line += 1 if place == "connected" else 3
        try:
            with interrupt_at(line) as count:
                value = cache.get(A)
        except KeyboardInterrupt:
            interrupted += 1
            assert cache.get(B) == b"value of b"
        else:
            assert value == b"value of a"
            assert count() < line  # no interrupt was lost
            break
    cache.close()
    gc.collect()
    assert interrupted > 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_just_after_connecting_is_not_lost(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Future[socket.socket]):
        def result(self, timeout: float | None = None) -> socket.socket:
            super().result(timeout)
            raise KeyboardInterrupt

    with store(redis_server.url, BUSY) as cache:
        with monkeypatch.context() as plant:
            plant.setattr("hasten.caching.redis_connection.Future", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                cache.get(A)
        gc.collect()
        assert cache.get(A) is None


@contextmanager
def interrupt_at(line: int) -> Iterator[Callable[[], int]]:
    """Raise ``KeyboardInterrupt`` before the given line of those that hasten and the package run in this thread.

    Yields a function that returns how many lines have been run.
    """
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if "caching" not in frame.f_code.co_filename and "redis" not in frame.f_code.co_filename:
            return None
        if event == "line" and "tests" not in frame.f_code.co_filename:
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: count
    finally:
        sys.settrace(before)


def test_a_forked_process_opens_connections_of_its_own(redis_server: RedisServer) -> None:
    def connection_id() -> int:
        reply = cache._call((b"CLIENT", b"ID"))[0]
        assert isinstance(reply, int)
        return reply

    with store(redis_server.url, BUSY) as cache:
        own = connection_id()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write_end, str(connection_id()).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write_end)
        with os.fdopen(read_end) as answer:
            assert int(answer.read()) > own
        assert connection_id() == own


JUNK = [
    b"",
    b"\r\n",
    b"+\r\n",
    b"OK",
    b"?what\r\n",
    b"$5\r\nab",
    b"$-5\r\n",
    b"$x\r\n",
    b"$99999999999999999999\r\nx",
    b":seven\r\n",
    b"*x\r\n",
    b"*99999999999\r\n:1\r\n",
    b"*1\r\n" * 5000,
    b"*2\r\n:0\r\n*0\r\n",
    b"*3\r\n$1\r\n0\r\n*0\r\n:1\r\n",
    b"*2\r\n$1\r\n0\r\n*1\r\n:4\r\n",
    b"-\r\n",
    b"-LOADING Redis is loading\r\n",
    b"-MOVED 1 host:1\r\n",
    b"-\xff\xfe\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\x00" * 5000,
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_a_server_of_another_protocol_fails_the_calls_and_nothing_else(junk: bytes) -> None:
    with one_reply(junk) as url:
        for call in (
            lambda cache: cache.get(A),
            lambda cache: cache.put(A, b"x"),
            lambda cache: cache.remove(A),
            lambda cache: cache.clear(),
            lambda cache: cache.usage(),
        ):
            start = time.monotonic()
            with store(url) as cache:
                try:
                    result, message = call(cache), ""
                except StoreFailed as error:
                    result, message = None, str(error)
            assert not result or result == StoreUsage(num_entries=0, num_bytes=0)
            assert message.isprintable() and len(message) < 300
            assert time.monotonic() - start < BUSY


def test_messages_do_not_repeat_values() -> None:
    reply = b"-ERR unknown command 'SET', with args beginning with: 'hasten' 'private text' \r\n"
    with one_reply(reply) as url, store(url, BUSY) as cache, pytest.raises(StoreFailed) as caught:
        cache.put(A, b"private text")
    assert "unknown command 'SET'" in str(caught.value) and "private" not in str(caught.value)
