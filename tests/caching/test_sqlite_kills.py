"""What a process has acknowledged before it is killed is there afterwards, and is complete."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.caching.naive_store import limits
from tests.exhaustive import repeats

from hasten.caching.sqlite_store import SqliteStore

WRITES_PER_KILL = 50
WRITER = """
import os, sys
from hasten.caching.base import StoreLimits
from hasten.caching.sqlite_store import SqliteStore
from tests.caching.test_sqlite_kills import key_of, value_of
store = SqliteStore(sys.argv[1], StoreLimits(ttl=1e6, max_bytes=10**9, max_entries=10**6, eviction="lru", timeout=30.0))
number, early = int(sys.argv[2]), int(sys.argv[3])
while True:
    if number == early:  # a planted fault
        os.write(1, b"%d\\n" % number)
        sys.stdin.read()
    store.put(key_of(number), value_of(number))
    store.get(key_of(number))
    os.write(1, b"%d\\n" % number)
    number += 1
"""


def key_of(number: int) -> bytes:
    return number.to_bytes(4, "big") * 8


def value_of(number: int) -> bytes:
    return random.Random(number).randbytes(number * 37 % 9000)


def write_until_killed(file: Path, first: int, num_acknowledged: int, early: int = -1) -> int:
    """Kill a writer after it has acknowledged some values, at a moment that the system chooses; return how many there were."""
    command = [sys.executable, "-c", WRITER, str(file), str(first), str(early)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(num_acknowledged)]
        writer.kill()
        lines += writer.stdout.readlines()  # what was acknowledged between the last line and the kill
    assert writer.returncode == -signal.SIGKILL
    assert lines == [b"%d\n" % (first + index) for index in range(len(lines))]
    return len(lines)


def lost(file: Path, num: int) -> list[int]:
    store = SqliteStore(file, limits())
    numbers = [number for number in range(num) if store.get(key_of(number)) != value_of(number)]
    assert store.usage().num_entries in (num - len(numbers), num - len(numbers) + 1)  # the last put may lack its acknowledgement
    store.close()
    return numbers


def test_acknowledged_values_survive_kills(tmp_path: Path) -> None:
    file, rng, num_written = tmp_path / "results.sqlite", random.Random(0), 0
    for number in range(repeats("sqlite kills")):
        wanted = rng.randint(1, 2 * WRITES_PER_KILL)
        wanted = max(wanted, (number + 1) * WRITES_PER_KILL - num_written)
        num_written += write_until_killed(file, num_written, wanted)
        assert lost(file, num_written) == [], number
    assert num_written >= WRITES_PER_KILL * repeats("sqlite kills")
    connection = sqlite3.connect(file)
    assert list(connection.execute("PRAGMA integrity_check")) == [("ok",)]
    connection.close()


def test_a_value_that_is_acknowledged_too_early_is_seen(tmp_path: Path) -> None:
    """Negative control."""
    file = tmp_path / "results.sqlite"
    assert write_until_killed(file, 0, 21, early=20) == 21
    assert lost(file, 21) == [20]
