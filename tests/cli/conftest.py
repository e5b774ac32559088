"""Running the command line inside the test's process."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hasten.cli.main import run


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def hasten(capsys, monkeypatch) -> Callable[..., Ran]:
    """``hasten("ls", "--json")``; ``stdin`` is a pipe, empty unless given."""

    def call(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = run(arguments)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The folder of a tiny model with a tokenizer of words, to train beside."""
    from tests.tiny_models import tiny_checkpoint, word_tokenizer  # transformers is heavy, and few tests need it

    folder = tiny_checkpoint("llama-gqa", tmp_path_factory.mktemp("tiny"))
    word_tokenizer(101).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path) -> str:
    """A file of its words to train on."""
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{10 + place % 7}" for place in range(3000)))
    return str(file)
