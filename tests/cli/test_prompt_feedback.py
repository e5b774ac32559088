"""``hasten prompt feedback``: it records, lists and reports, and keeps no text unless asked."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import CommandOutput

from hasten.prompts.feedback import Feedback, FeedbackStore

Hasten = Callable[..., CommandOutput]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with two variants and a file that is no database."""
    monkeypatch.chdir(tmp_path)
    Path("plain.txt").write_text("{{ input }}\nimport")
    Path("comment.txt").write_text("# the module {{ input }}\nimport\n")
    Path("task.jsonl").write_text('{"input": "json", "output": "json"}\n' * 99)


def test_feedback_is_recorded_listed_and_reported(hasten: Hasten) -> None:
    for opinion, variant in (("good", "plain.txt"), ("good", "plain.txt"), ("bad", "comment.txt")):
        found = hasten("prompt", "feedback", "add", opinion, "--variant", variant, "--model", "demo", "--comment", "a\x1b[2Jb")
        assert (found.code, found.out, found.err) == (0, "", "")
    listed = hasten("prompt", "feedback", "ls")
    assert [line.split()[2] for line in listed.out.splitlines()[1:]] == ["comment.txt", "plain.txt", "plain.txt"]
    assert "\x1b" not in listed.out
    (newest,) = json.loads(hasten("prompt", "feedback", "ls", "--limit", "1", "--json").out)
    assert (newest["variant"], newest["is_good"], newest["model"]) == ("comment.txt", False, "demo")
    shown = hasten("prompt", "feedback", "report").out
    assert "100.0% (34.2% to 100.0%)" in shown and "no difference shown between plain.txt, comment.txt" in shown
    report = json.loads(hasten("prompt", "feedback", "report", "--json").out)
    assert (report["winner"], [one["num_good"] for one in report["variants"]]) == (None, [2, 0])


def test_a_real_difference_has_a_winner(hasten: Hasten) -> None:
    with FeedbackStore(Path("feedback.sqlite")) as store:
        for index in range(20):
            for name, is_good in (("new", True), ("old", index % 3 == 0)):
                store.add(Feedback(variant=name, digest="0" * 64, is_good=is_good, time=1e9))
    assert "winner: new" in hasten("prompt", "feedback", "report").out


def test_texts_are_stored_only_if_asked(hasten: Hasten) -> None:
    Path("answer.txt").write_text("a private answer")
    Path("asked.txt").write_text("a private prompt")
    add = ("prompt", "feedback", "add", "good", "--variant", "plain.txt")
    assert hasten(*add, "--output", "answer.txt").code == 0
    refused = hasten(*add, "--prompt", "asked.txt")
    assert refused.code == 2 and "--keep-text" in refused.err
    (entry,) = json.loads(hasten("prompt", "feedback", "ls", "--json").out)
    assert entry["output_id"] == hashlib.sha256(b"a private answer").hexdigest()
    assert b"private" not in Path("feedback.sqlite").read_bytes()
    assert hasten(*add, "--output", "answer.txt", "--prompt", "asked.txt", "--output-id", "7", "--keep-text").code == 0
    entry, _ = json.loads(hasten("prompt", "feedback", "ls", "--json").out)
    assert (entry["output_id"], entry["output"], entry["prompt"]) == ("7", "a private answer", "a private prompt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "great", "--variant", "plain.txt"), "an opinion is one of two"),
        (("add", "good", "--variant", "missing.txt"), "missing.txt"),
        (("add", "good", "--variant", "plain.txt", "--file", "none/f.sqlite"), "cannot be made"),
        (("add", "good", "--variant", "plain.txt", "--file", "task.jsonl"), "no SQLite file"),
        (("ls",), "there is no feedback"),
        (("report",), "there is no feedback"),
        (("report", "--file", "empty"), "there is no feedback"),
        (("report", "--file", "other.sqlite"), "database of another program"),
    ],
)
def test_a_wrong_feedback_command_is_one_sentence(hasten: Hasten, arguments: tuple[str, ...], words: str) -> None:
    Path("empty").touch()
    connection = sqlite3.connect("other.sqlite")
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    found = hasten("prompt", "feedback", *arguments)
    assert found.code == 2 and words in found.err and found.err.count("\n") == 1
