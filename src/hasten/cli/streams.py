"""The standard streams of the command: closed, full, endless, or not UTF-8."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from hasten.core.errors import InvalidOption

_MODES = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
MAX_INPUT = 1 << 26  # characters of a prompt from a file or from standard input, which may have no end


def prepare_streams() -> None:
    """Make the standard streams fit for any text.

    Output escapes what its encoding lacks. Input keeps bytes that are not text as lone surrogates, and the request that has one is
    refused. A closed input is empty, and a closed error stream is dropped. Raises ``InvalidOption`` for a closed output.
    """
    closed = [name for name, _ in _MODES if getattr(sys, name) is None]
    for name, mode in _MODES:
        if name in closed:  # the device takes the number of the closed stream, so that no weight file gets it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    if "stdout" in closed:
        raise InvalidOption("standard output is closed", remedy="Redirect it to a file, or to /dev/null")
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def end_output() -> None:
    """Flush standard output, or write to it no more if it takes nothing.

    The interpreter would flush it again at its end, and change the exit code.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream has no number
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_input() -> str:
    """Return all of standard input. Raises ``InvalidOption`` if it does not end."""
    return check_size(sys.stdin.read(MAX_INPUT + 1), "standard input")


def read_prompt_file(file: str, subject: str = "prompt file") -> str:
    """Return the text of a file, or of standard input for ``-``. Raises ``InvalidOption``."""
    if file == "-":
        return read_input()
    try:
        with Path(file).open(encoding="utf-8") as stream:
            return check_size(stream.read(MAX_INPUT + 1), file)
    except (OSError, ValueError) as error:  # no such file, no text in it, or no name of a file
        raise InvalidOption(f"the {subject} {file} cannot be read", got=error, remedy="Give a file of UTF-8 text") from None


def check_size(text: str, name: str) -> str:
    """Return the text. Raises ``InvalidOption`` if it has more than ``MAX_INPUT`` characters."""
    if len(text) > MAX_INPUT:
        raise InvalidOption(f"{name} is too long for a prompt", allowed=f"up to {MAX_INPUT:,} characters")
    return text
