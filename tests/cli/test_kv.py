"""``hasten kv``: what it saves is loaded again, listed and removed; mistakes are one line."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

TEXT = " ".join(f"w{30 + i}" for i in range(40))
OPTIONS = ("--kv-cache-memory", "8MiB", "--max-model-len", "128", "--threads", "1")
GREEDY = ("--temperature", "0", "--max-tokens", "6")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_saved_prompt_is_found_by_its_name(hasten, model, cache):
    saved = hasten("kv", "save", model, TEXT, "--out", "notes", *OPTIONS)
    assert (saved.code, saved.out) == (0, "")
    assert "saved 32 tokens" in saved.err
    file = cache / "kv" / "notes.safetensors"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    rows = json.loads(hasten("kv", "ls", "--json").out)
    assert [(row["name"], row["model"], row["num_tokens"], row["num_bytes"]) for row in rows] == [
        ("notes", model, 32, file.stat().st_size)
    ]
    header, cells = hasten("kv", "ls").out.splitlines()
    assert header.split() == ["NAME", "MODEL", "TOKENS", "SIZE", "DTYPE", "KERNELS"]
    assert cells.split()[:3] == ["notes", model, "32"]
    question = f"{TEXT} w77"
    plain = hasten("generate", model, question, *OPTIONS, *GREEDY)
    loaded = hasten("kv", "load", model, "notes", question, *OPTIONS, *GREEDY)
    assert loaded.out == plain.out
    assert "loaded notes: 32 tokens in " in loaded.err
    assert "prompt 41 tokens (32 cached, 9 computed)" in loaded.err
    assert "prompt 41 tokens (0 cached, 41 computed)" in plain.err
    generated = hasten("generate", model, question, question, "--load-kv", "notes", *OPTIONS, *GREEDY)
    assert "82 tokens (64 cached, 18 computed)" in generated.err
    assert "removed notes" in hasten("kv", "rm", "notes").err
    assert not file.exists()
    assert hasten("kv", "ls", "--json").out == "[]\n"


def test_a_prompt_comes_from_a_file_or_from_token_ids(hasten, model, tmp_path):
    (tmp_path / "prompt.txt").write_text(TEXT)
    for arguments in (("-f", str(tmp_path / "prompt.txt")), ("--prompt-ids", ",".join(map(str, range(10, 40))))):
        assert hasten("kv", "save", model, *arguments, "--out", str(tmp_path / "x.safetensors"), *OPTIONS).code == 0
    loaded = hasten("kv", "load", model, str(tmp_path / "x.safetensors"), *OPTIONS)
    assert (loaded.code, loaded.out) == (0, "")
    assert ": 16 tokens in " in loaded.err
    listed = json.loads(hasten("kv", "ls", str(tmp_path), "--json").out)
    assert [row["path"] for row in listed] == [str(tmp_path / "x.safetensors")]


def test_chat_loads_files(hasten, model, tmp_path):
    hasten("kv", "save", model, TEXT, "--out", str(tmp_path / "x.safetensors"), *OPTIONS)
    chat = hasten("chat", model, "--load-kv", str(tmp_path / "x.safetensors"), *OPTIONS, stdin="/bye\n")
    assert ": 32 tokens in " in chat.err


def test_other_files_are_listed_as_warnings_and_never_removed(hasten, tmp_path):
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"weights of someone")
    listed = hasten("kv", "ls", str(tmp_path))
    assert (listed.code, listed.err.count("warning: "), listed.out.count("\n")) == (0, 1, 1)
    removed = hasten("kv", "rm", str(other))
    assert removed.code == 2
    assert other.exists()


def test_a_damaged_file_can_be_removed_by_its_name(hasten, cache):
    assert hasten("kv", "ls").code == 0  # makes the folder
    (cache / "kv" / "old.safetensors").write_bytes(b"x")
    assert hasten("kv", "rm", "old").code == 0
    assert os.listdir(cache / "kv") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("save", "demo", "hi", "--out", ""), "this is no name of a file of KV blocks"),
        (("save", "demo", "hi"), "Missing option '--out'"),
        (("save", "demo", "--out", "x"), "there is no prompt"),
        (("save", "demo", "hi", "--prompt-ids", "1,2", "--out", "x"), "a file holds the KV cache of one prompt"),
        (("save", "demo", "hi", "--out", "x", *OPTIONS), "the prompt does not fill a KV block"),
        (("save", "demo", TEXT, "--out", "nowhere/x.safetensors", *OPTIONS), "nowhere/x.safetensors cannot be written"),
        (("load", "demo", "nothing", *OPTIONS), "nothing.safetensors cannot be read: got No such file or directory"),
        (("load", "demo", "x", "hi", "--prompt-ids", "1,2"), "one prompt is answered"),
        (("ls", "nowhere"), "the folder nowhere cannot be read"),
        (("rm", "nothing"), "nothing.safetensors cannot be removed"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, hasten):
    ran = hasten("kv", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert [message in line for line in ran.err.splitlines() if line.startswith("error: ")] == [True]
