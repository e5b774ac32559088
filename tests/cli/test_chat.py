"""``hasten chat`` through a pipe, where each line is a turn, and on a pseudo-terminal with Ctrl-C."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hasten import LLM, Delta, SamplingParams
from hasten.cli import chat

OPTIONS = ("--max-tokens", "8", "--temperature", "0", "--dtype", "float32", "--kv-cache-memory", "64MiB")
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_each_line_is_a_turn_and_the_history_is_part_of_the_prompt(hasten, llm):
    ran = hasten("chat", "demo", "--system", "Be brief.", *OPTIONS, stdin="Hello\nAnd now?\n")
    messages = [message("system", "Be brief."), message("user", "Hello")]
    first = llm.chat(messages, GREEDY)[0].outputs[0].text
    messages += [message("assistant", first), message("user", "And now?")]
    second = llm.chat(messages, GREEDY)[0].outputs[0].text
    assert (ran.code, ran.out) == (0, f"{first}\n{second}\n")
    summaries = [line for line in ran.err.splitlines() if "finish: " in line]
    counts = [
        tuple(map(int, re.match(r"prompt (\d+) tokens \((\d+) cached, (\d+) computed\)", line).groups())) for line in summaries
    ]
    assert [cached > 0 for _, cached, _ in counts] == [False, True]
    assert all(prompt == cached + computed for prompt, cached, computed in counts)


def test_a_file_of_settings_stands_between_preset_and_options(hasten, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("top_p: 0.5\nmax_tokens: 3\n")
    options = ("--preset", "creative", "--params", str(file), "--max-tokens", "2", *OPTIONS[2:])
    ran = hasten("chat", "demo", *options, stdin="Hello\n/set preset balanced\n")
    assert ran.code == 0
    assert "top_p=0.5 (file)" in ran.err and "max_tokens=2 (option)" in ran.err and "output 2 tokens" in ran.err
    file.write_text("n: 2")
    ran = hasten("chat", "demo", "--params", str(file), *OPTIONS, stdin="Hello\n")
    assert (ran.code, ran.err.count("\n")) == (2, 1) and "a conversation continues from one answer" in ran.err


class ThinkingSession:
    """Streams one answer after a thought, and keeps what it is told of it."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def stream_answer(self, question: str) -> Iterator[Delta]:
        pieces = [("Look ", ""), ("it up.", ""), ("", "Fine"), ("", ".")]
        for reasoning, text in pieces:
            yield Delta(request_id="0", index=0, text=text, token_ids=(1,), reasoning=reasoning)

    def add_answer(self, text: str) -> None:
        self.answers.append(text)


def test_the_answer_after_a_thought_begins_on_a_line_of_its_own(capsys):
    session = ThinkingSession()
    chat._answer(session, "Hello")
    printed = capsys.readouterr()
    assert (printed.out, session.answers) == ("Fine.\n", ["Fine."])
    assert printed.err.startswith("Look it up.\n\n")


def test_clear_retry_save_and_load(hasten, llm, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    lines = [
        "Hello",
        "/retry",
        f"/save {first}",
        "/clear",
        "/show",
        f"/load {first}",
        "Again",
        f"/save {second}",
        "/bye",
        "Never asked",
    ]
    ran = hasten("chat", "demo", *OPTIONS, stdin="\n".join(lines) + "\n")
    hello = llm.chat([message("user", "Hello")], GREEDY)[0].outputs[0].text
    assert ran.code == 0
    assert json.loads(first.read_text()) == {
        "model": "demo",
        "system": None,
        "messages": [message("user", "Hello"), message("assistant", hello)],
    }
    assert "messages: 0" in ran.err
    assert [message["content"] for message in json.loads(second.read_text())["messages"][:3]] == ["Hello", hello, "Again"]
    assert ran.err.count("finish: ") == 3


def test_set_changes_the_settings_of_the_next_answer(hasten, llm):
    lines = [
        "/set max_tokens 3",
        "/set preset creative",
        "/set temperature 0",
        "Hello",
        "/set max-tokens default",
        "/set preset default",
    ]
    ran = hasten("chat", "demo", *OPTIONS, stdin="\n".join([*lines, "/show"]) + "\n")
    assert "output 3 tokens" in ran.err
    assert "top_p=0.95 (preset creative)" in ran.err
    shown = ran.err[ran.err.rindex("settings:") :]
    assert "max_tokens" not in shown
    assert "creative" not in shown
    assert "temperature=0.0 (option)" in shown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/sett x 1", "Did you mean '/set'"),
        ("/set temprature 1", "Did you mean 'temperature'"),
        ("/set temperature hot", "--temperature"),
        ("/set temperature -1", "temperature=-1.0"),
        ("/set n 2", "generate"),
        ("/set temperature", "/set temperature 0.7"),
        ("/load no/such/file", "no/such/file"),
        ("/save /no/such/folder/x", "cannot be written"),
        ("/save", "needs a file"),
        ("/retry", "no question yet"),
        ("x " * 5000, "allowed"),
    ],
)
def test_a_mistake_is_printed_and_the_session_continues(hasten, line, expected):
    ran = hasten("chat", "demo", *OPTIONS, stdin=f"{line}\n/show\n")
    assert ran.code == 0
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "messages: 0" in ran.err


def test_help_names_every_command(hasten):
    from hasten.cli.slash_commands import COMMANDS

    text = hasten("chat", "demo", stdin="/help\n").err
    assert [name for name in COMMANDS if name not in text] == []


class Terminal:
    """A hasten session whose keyboard and screen are a pseudo-terminal."""

    # A background job of a shell ignores Ctrl-C and its children inherit that, so the session restores the default.
    ENTRY = (
        "import fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); from hasten.cli.main import run; sys.exit(run({!r}))"
    )

    def __init__(self, *arguments: str) -> None:
        self.keyboard, screen = pty.openpty()
        command = [sys.executable, "-c", self.ENTRY.format(list(arguments))]
        self.process = subprocess.Popen(command, stdin=screen, stdout=screen, stderr=screen, start_new_session=True)
        os.close(screen)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 180) -> str:
        """Return all output up to and including ``text``."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.keyboard], [], [], 1)[0]:
                self.seen += os.read(self.keyboard, 4096).decode(errors="replace")
        before, self.seen = self.seen.split(text, 1)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def type_until(self, key: str, text: str) -> None:
        """Type ``key`` until ``text`` appears.

        A signal just before input() reads takes effect only with the next one.
        """
        for _ in range(29):
            self.type(key)
            try:
                self.wait_for(text, seconds=2)
            except AssertionError:
                continue
            return
        self.type(key)
        self.wait_for(text)

    def close(self) -> int:
        code = self.process.wait(timeout=60)
        os.close(self.keyboard)
        return code


def test_ctrl_c_stops_the_answer_and_not_the_session():
    terminal = Terminal("chat", "demo", "--ignore-eos", "--seed", "1")
    try:
        terminal.wait_for(">>> ")
        terminal.type("Tell me everything\n")
        terminal.wait_for("everything\r\n")
        terminal.wait_for("e")  # the answer has begun, and its full length is 4,000 tokens
        terminal.type("\x03")
        terminal.wait_for("stopped")
        terminal.wait_for(">>> ")
        terminal.type_until("\x03", "/bye or Ctrl-D quits.")
        terminal.type("/show\n")
        terminal.wait_for("messages: 2")
        terminal.type("/set max_tokens 2\n")
        terminal.wait_for("settings:")
        terminal.type("Once more\n")
        terminal.wait_for("finish: length")
        terminal.wait_for(">>> ")
        terminal.type("\x04")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
