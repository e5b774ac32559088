"""Feedback is kept whatever happens, and reports call a difference real only if it is."""

from __future__ import annotations

import math
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from tests.exhaustive import repeats

from hasten.core.errors import HastenError, InvalidOption
from hasten.prompts.feedback import Feedback, FeedbackCount, FeedbackStore
from hasten.prompts.feedback_report import report_feedback
from hasten.quality.intervals import difference_interval, wilson_interval

WRITER = """
import os, sys
from pathlib import Path
from hasten.prompts.feedback import FeedbackStore
from tests.prompts.test_feedback import feedback_of
store, number = FeedbackStore(Path(sys.argv[1])), int(sys.argv[2])
while True:
    store.add(feedback_of(number))
    os.write(1, b"%d\\n" % number)
    number += 1
"""


def feedback_of(number: int, **fields: Any) -> Feedback:
    values = {"variant": f"v{number % 3}", "digest": f"{number % 3:064x}", "time": 1e9 + number, "comment": f"c{number}"}
    return Feedback(**{**values, "is_good": number % 2 == 0, **fields})


def test_entries_come_back_newest_first(tmp_path: Path) -> None:
    texts = {"model": "demo", "output_id": "é", "comment": "a\nb\0", "prompt": "p" * 10_000, "output": ""}
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        store.add(feedback_of(1))
        store.add(feedback_of(2, **texts))
        assert store.newest(10) == [feedback_of(2, **texts), feedback_of(1)]
        assert store.newest(1) == [feedback_of(2, **texts)]
        assert store.newest(10)[1].prompt is None and store.newest(10)[1].output is None
    assert stat.S_IMODE((tmp_path / "f.sqlite").stat().st_mode) == 0o600


def test_counts_tell_texts_of_one_name_apart(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        for number in range(10):
            store.add(feedback_of(number, variant="v", digest="a" * 64 if number < 4 else "b" * 64))
        assert store.counts() == [FeedbackCount("v", "a" * 64, 2, 2), FeedbackCount("v", "b" * 64, 3, 3)]


def test_entries_survive_kills(tmp_path: Path) -> None:
    file, num_written = tmp_path / "f.sqlite", 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for kill in range(3):
        command = [sys.executable, "-c", WRITER, str(file), str(num_written)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            num_lines = len([writer.stdout.readline() for _ in range(random.Random(kill).randint(1, 30))])
            writer.kill()
            num_lines += len(writer.stdout.readlines())
        assert writer.returncode == -signal.SIGKILL
        num_written += num_lines
        with FeedbackStore(file) as store:
            found = store.newest(10**6)[::-1]
        assert found[:num_written] == [feedback_of(number) for number in range(num_written)]
        num_written = len(found)  # the last entry may lack its acknowledgement
    connection = sqlite3.connect(file)
    assert list(connection.execute("PRAGMA integrity_check")) == [("ok",)]
    connection.close()


def test_several_writers_make_one_file(tmp_path: Path) -> None:
    def write(first: int) -> None:
        with FeedbackStore(tmp_path / "f.sqlite") as store:
            for number in range(first, first + 10):
                store.add(feedback_of(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(0, 40, 10)))
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        assert sum(count.num_good + count.num_bad for count in store.counts()) == 40


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"variant": ""}, "variant"),
        ({"digest": "A" * 64}, "digest.*SHA-256"),
        ({"digest": "a"}, "digest"),
        ({"is_good": "yes"}, "is_good"),
        ({"time": float("nan")}, "time"),
        ({"comment": "x" * 10_001}, "comment"),
        ({"comment": "\ud800"}, "comment"),
        ({"output": "x" * (1 << 21)}, "output"),
    ],
)
def test_a_wrong_field_is_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        feedback_of(0, **fields)


def test_other_files_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("my own notes, which are long enough to be no header\n" * 50)
    with pytest.raises(InvalidOption, match="no SQLite file"):
        FeedbackStore(tmp_path / "notes")
    assert (tmp_path / "notes").read_text().startswith("my own notes")
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = (tmp_path / "other.sqlite").read_bytes()
    with pytest.raises(InvalidOption, match="database of another program"):
        FeedbackStore(tmp_path / "other.sqlite")
    assert (tmp_path / "other.sqlite").read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidOption, match="no ordinary file"):
            FeedbackStore(path)
    for path in (tmp_path / "missing" / "f.sqlite", Path("bad\0name")):
        with pytest.raises(InvalidOption, match="cannot be made"):
            FeedbackStore(path)
    with pytest.raises(InvalidOption, match="there is no feedback"):
        FeedbackStore(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "change",
    [
        "is_good = 2",
        "is_good = 'x'",
        "is_good = 1.5",
        "variant = x'ff'",
        "variant = ''",
        "digest = 'short'",
        "time = 'now'",
        "time = 9e999",
        "comment = x'ff'",
    ],
)
def test_a_row_that_hasten_never_wrote_is_one_sentence(tmp_path: Path, change: str) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        store.add(feedback_of(0))
        connection = sqlite3.connect(tmp_path / "f.sqlite")
        connection.execute(f"UPDATE feedback SET {change}")
        connection.commit()
        connection.close()
        with pytest.raises(HastenError, match="file of feedback is damaged"):
            store.newest(1)


def test_damaged_files_give_one_sentence(tmp_path: Path) -> None:
    file, rng = tmp_path / "f.sqlite", random.Random(0)
    with FeedbackStore(file) as store:
        for number in range(60):
            store.add(feedback_of(number, comment="x" * 200))
    content, messages = file.read_bytes(), list[str]()
    for _ in range(repeats("feedback damage")):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 40)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.randint(1, len(damaged))] if rng.random() < 0.3 else damaged)
        try:
            with FeedbackStore(file) as store:
                assert len(store.newest(100)) + len(store.counts()) < 200
        except HastenError as error:
            messages.append(str(error))
    assert len(messages) > repeats("feedback damage") // 10
    assert [message for message in messages if "\n" in message or "file of feedback" not in message] == []


def newcombe(good_1: int, num_1: int, good_2: int, num_2: int, level: float) -> tuple[float, float]:
    """Newcombe's interval from the roots of the score equation |p - x| = z sqrt(x (1 - x) / n)."""
    z = NormalDist().inv_cdf((1 + level) / 2)

    def roots(good: int, num: int) -> tuple[float, float]:
        p, a = good / num, 1 + z * z / num
        b, c = -(2 * p + z * z / num), p * p
        root = math.sqrt(max(0.0, b * b - 4 * a * c))
        return (-b - root) / (2 * a), (-b + root) / (2 * a)

    (low_1, high_1), (low_2, high_2) = roots(good_1, num_1), roots(good_2, num_2)
    p_1, p_2 = good_1 / num_1, good_2 / num_2
    low = p_1 - p_2 - math.sqrt((p_1 - low_1) ** 2 + (high_2 - p_2) ** 2)
    return low, p_1 - p_2 + math.sqrt((high_1 - p_1) ** 2 + (p_2 - low_2) ** 2)


def test_the_report_ranks_and_corrects() -> None:
    counts = [FeedbackCount("a", "1" * 64, 40, 60), FeedbackCount("b", "2" * 64, 90, 10), FeedbackCount("c", "3" * 64, 80, 20)]
    found = report_feedback(counts)
    best, second, third = found.variants
    assert [variant.name for variant in found.variants] == ["b", "c", "a"] and found.winner is None
    assert (best.share, best.interval, best.difference) == (0.9, wilson_interval(90, 100), None)
    assert second.difference_interval == pytest.approx(newcombe(90, 100, 80, 100, 1 - 0.05 / 3), abs=1e-9)
    assert third.difference_interval == pytest.approx(newcombe(90, 100, 40, 100, 1 - 0.05 / 3), abs=1e-9)
    assert (second.is_worse, third.is_worse) == (False, True)
    assert newcombe(90, 100, 80, 100, 0.95)[0] > 0  # negative control: without the correction c is worse
    assert report_feedback(counts[:2]).winner == "b"
    assert report_feedback(counts[:1]).winner is None


def test_texts_of_one_name_are_told_apart() -> None:
    counts = [FeedbackCount("v", "a1" * 32, 1, 0), FeedbackCount("v", "b2" * 32, 0, 1), FeedbackCount("w", "c3" * 32, 0, 2)]
    assert [variant.name for variant in report_feedback(counts).variants] == ["v@a1a1a1a1", "w", "v@b2b2b2b2"]


def test_equals_win_in_one_report_of_twenty() -> None:
    rng, num = random.Random(2), repeats("comparisons")

    def counts() -> list[FeedbackCount]:
        goods = [sum(rng.random() < 0.6 for _ in range(80)) for _ in range(5)]
        return [FeedbackCount(f"v{index}", "0" * 64, good, 80 - good) for index, good in enumerate(goods)]

    drawn = [counts() for _ in range(num)]
    corrected = sum(any(variant.is_worse for variant in report_feedback(one).variants) for one in drawn)
    assert corrected <= 0.05 * num + 2 * math.sqrt(0.05 * 0.95 * num)

    def is_any_real(one: list[FeedbackCount]) -> bool:
        best, worst = max(c.num_good for c in one), min(c.num_good for c in one)
        return difference_interval(best, 80, worst, 80)[0] > 0

    assert sum(map(is_any_real, drawn)) > 0.15 * num  # negative control
