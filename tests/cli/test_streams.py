"""Standard streams that are closed, full, broken or of another encoding: one sentence, the documented exit code, no traceback."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.cli.main import run

COMMAND = [sys.executable, "-c", "from hasten.cli.main import main; main()"]
GENERATE = ("generate", "demo", "--max-tokens", "2", "--temperature", "0", "--max-model-len", "64")


def shell(script: str) -> tuple[int, str]:
    """Run a script in which ``hasten`` is the command; return its exit code and what it wrote to standard error."""
    words = " ".join(f"'{word}'" for word in COMMAND)
    bash = ["bash", "-c", f'hasten() {{ {words} "$@"; }}\n{script}']
    ran = subprocess.run(bash, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("hasten ls > /dev/full", 2, "error: the system refuses to read or write: [Errno 28] No space left on device.\n"),
        ("hasten ls >&-", 2, "error: standard output is closed. Redirect it to a file, or to /dev/null.\n"),
        ("hasten nothing 2> /dev/full", 2, ""),
        ("hasten --version <&- 2>&-", 0, ""),
        ("set -o pipefail; hasten --help | true", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing(script: str, code: int, message: str) -> None:
    """The interpreter's own flush at exit changes neither the code nor the message."""
    assert shell(script) == (code, message)


def stream(content: bytes = b"", encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding, write_through=True)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command with streams of these encodings."""

    def call(*arguments: str, content: bytes = b"", encoding: str = "utf-8") -> tuple[int, str, str]:
        replaced = {"stdin": stream(content), "stdout": stream(encoding=encoding), "stderr": stream(encoding=encoding)}
        for name, value in replaced.items():
            monkeypatch.setattr(sys, name, value)
        code = run(arguments)
        out, err = (replaced[name].buffer.getvalue().decode(encoding) for name in ("stdout", "stderr"))  # type: ignore[attr-defined]
        return code, out, err

    return call


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_escapes_what_its_encoding_lacks(streams: Callable[..., tuple[int, str, str]], encoding: str) -> None:
    code, out, err = streams(*GENERATE, "--json", "é 😀", encoding=encoding)
    assert (code, err.count("Traceback")) == (0, 0)
    expected = {"ascii": r'"prompt": "\xe9 \U0001f600"', "latin-1": r'"prompt": "é \U0001f600"', "utf-8": '"prompt": "é 😀"'}
    assert expected[encoding] in out


def test_input_that_is_no_text_is_refused_and_a_chat_goes_on(streams: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = streams(*GENERATE, content=b"a \xff")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert r"the prompt is not Unicode text: got 'a \udcff'" in err
    lines = b"\xff\n/load \0\n/save a\0b\n/load ~no_such_user/x\n/save /\n/set temperature \xff\nHello\n"
    code, out, err = streams("chat", *GENERATE[1:4], "--max-model-len", "128", content=lines)
    assert code == 0
    assert len(out.splitlines()) >= 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 6
    assert all(line.isprintable() for line in errors)
    assert "tokens/s" in err.splitlines()[-1]  # of the last question


def test_input_without_an_end_is_refused(streams: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.cli.streams.MAX_INPUT", 1000)
    code, _, err = streams(*GENERATE, content=b"x" * 1001)
    assert (code, err) == (2, "error: standard input is too long for a prompt: allowed: up to 1,000 characters.\n")
    code, _, err = streams(*GENERATE, "-f", "/dev/zero")
    assert (code, err) == (2, "error: /dev/zero is too long for a prompt: allowed: up to 1,000 characters.\n")


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, name, None)
    code = run(["ls"])
    replacement = getattr(sys, name)
    replacement.close()
    assert code == (2 if name == "stdout" else 0)
    assert ("standard output is closed" in capsys.readouterr().err) == (name == "stdout")


LONG_NAME = "x" * 300
TEXT = ("train", "medusa", "demo", "--out", "{folder}/out", "--data")
EVAL = ("eval", "demo", "--text")
OPTIONS = [
    *(("--threads", "two"), ("--threads", "1e400"), ("--threads", "2147483647"), ("--block-size", "9" * 5000)),
    *(("--stop", "\udcff"), ("--preset", "\udcff"), ("--logit-bias", "1=nan"), ("--temperature", "inf")),
    *(("--draft-model", "\udcff"), ("--json", "\udcff"), ("--kv-cache-memory", "lots")),
    *(("--max-num-batched-tokens", "4294967360"), ("--block-size", "4294967312"), ("--max-tokens", "\x1b[31m")),
]
# {folder} stands for a folder of the test.
MISTAKES = [
    *(("generate", "demo", "-f", name) for name in ("{folder}", "{folder}/none", LONG_NAME, "{folder}/bytes", "{folder}/none/x")),
    *((*TEXT, name) for name in ("{folder}", "{folder}/none", LONG_NAME, "{folder}/bytes", "{folder}/zero.txt", "/dev/zero")),
    *((*TEXT, f"{{folder}}/{name}.jsonl") for name in ("deep", "list", "number", "surrogate", "broken", "null")),
    *((*EVAL, name) for name in ("{folder}", LONG_NAME, "{folder}/bytes", "/dev/zero", "{folder}/deep.jsonl", "{folder}/empty")),
    (*TEXT[:4], LONG_NAME, "--data", "{folder}/text"),
    (*TEXT, "{folder}/text", "--seed", "-1"),
    (*TEXT, "{folder}/text", "--lr", "nan"),
    (*TEXT, "{folder}/text", "--threads", "2147483647"),
    ("eval", "demo", "--json", f"{{folder}}/{LONG_NAME}"),
    ("eval", "demo", "--token-ids", "{folder}/bytes"),
    *(
        ("generate", "demo", "x", *options)
        for options in (("--threads", "two"), ("--threads", "1e400"), ("--block-size", "9" * 5000))
    ),
    *(("generate", "demo", "x", *options) for options in OPTIONS),
    ("generate", "demo", "\udcff"),
    ("generate", "m\udcff", "x"),
    ("generate", LONG_NAME, "x"),
    ("\udcff",),
    ("generate", "--\udcff", "1", "demo", "x"),
    ("bench", "latency", "demo", "--input-len", "99999999999"),
    ("bench", "throughput", "demo", "--num-prompts", "1000000000"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        "bytes": b"\xff\xfe\x00",
        "zero.txt": b"a\0b",
        "empty": b"",
        "text": b"some words " * 2000,
        "deep.jsonl": b"[" * 10**5,
        "list.jsonl": b"[]",
        "number.jsonl": b'{"text": 5}',
        "null.jsonl": b"null",
        "surrogate.jsonl": rb'{"text": "\ud800"}',
        "broken.jsonl": b'{"text": "a',
    }
    path = tmp_path_factory.mktemp("files")
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda mistake: ascii(" ".join(mistake))[1:60])
def test_a_wrong_file_or_option_is_one_line_and_exit_code_2(
    hasten: Callable[..., object], folder: Path, arguments: list[str]
) -> None:
    ran = hasten(*(argument.replace("{folder}", str(folder)) for argument in arguments))
    assert (ran.code, ran.out) == (2, ""), ran.err
    error = ran.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert error.isprintable()
    assert len(error) <= 2010
    assert "Traceback" not in ran.err and "bug in hasten" not in ran.err
    assert not (folder / "out").exists()
