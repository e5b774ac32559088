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
