"""Fixtures that run the command line inside the test's process."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hasten.cli.main import run


@dataclass(frozen=True)
class CommandOutput:
    code: int
    out: str
    err: str


@pytest.fixture
def hasten(capsys, monkeypatch) -> Callable[..., CommandOutput]:
    """Return a function that runs ``hasten("ls", "--json")``; ``stdin`` is a pipe, empty by default."""

    def call(*arguments: str, stdin: str = "") -> CommandOutput:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = run(arguments)
        out, err = capsys.readouterr()
        return CommandOutput(code, out, err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Return the folder of a tiny model with a word tokenizer."""
    from tests.tiny_models import tiny_checkpoint, word_tokenizer  # transformers is heavy, and few tests need it

    folder = tiny_checkpoint("llama-gqa", tmp_path_factory.mktemp("tiny"))
    word_tokenizer(101).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path) -> str:
    """Return a file of words of that tokenizer to train on."""
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{10 + position % 7}" for position in range(3000)))
    return str(file)
