"""JSON that arrives in pieces (RFC 8259), checked while it is read.

Each emitted text is the start of valid JSON.

One thing is more lenient: control characters in strings, which models write, are emitted as escapes.
"""

from __future__ import annotations

import json
import re

from hasten.text.answers.text_reader import SPACE, Emit, MalformedCall, Reading, TextReader

MAX_DEPTH = 64  # of nested objects and arrays
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_SCALARS = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_HEX = re.compile(r"[0-9A-Fa-f]{4}")
_CLOSER = {"{": "}", "[": "]"}


def read_value(reader: TextReader, emit: Emit) -> Reading[None]:
    """Take one value without the space around it. Raises ``MalformedCall``."""
    open_brackets: list[str] = []
    while True:
        yield from reader.run(SPACE, emit)
        first = yield from reader.peek()
        if first == '"':
            yield from read_string(reader, emit)
        elif first in ("{", "["):
            if len(open_brackets) == MAX_DEPTH:
                raise MalformedCall(f"its JSON is nested more than {MAX_DEPTH} levels deep")
            open_brackets.append(first)
            emit(reader.take(1))
            yield from reader.run(SPACE, emit)
            if (yield from reader.peek()) != _CLOSER[first]:
                if first == "{":
                    yield from _read_key(reader, emit)
                continue
            emit(reader.take(1))
            open_brackets.pop()
        else:
            yield from _read_scalar(reader, emit)
        if not (yield from _next_member(reader, emit, open_brackets)):
            return


def read_string(reader: TextReader, emit: Emit) -> Reading[None]:
    """Take a string with its quotes. Raises ``MalformedCall``."""
    yield from reader.require('"')
    emit('"')
    while True:
        yield from reader.run(_PLAIN, emit)
        character = yield from reader.peek()
        if not character:
            raise MalformedCall("the text ends in a string")
        reader.take(1)
        if character == '"':
            emit('"')
            return
        if character != "\\":
            emit(json.dumps(character)[1:-1])
            continue
        escape = yield from reader.peek()
        if not escape or escape not in '"\\/bfnrtu':
            raise MalformedCall("a string has an unknown escape" if escape else "the text ends in a string")
        reader.take(1)
        emit("\\" + escape + ((yield from _read_hex(reader)) if escape == "u" else ""))


def read_text(reader: TextReader) -> Reading[str]:
    """Take a string and return its text. Raises ``MalformedCall``."""
    parts: list[str] = []
    yield from read_string(reader, parts.append)
    text: str = json.loads("".join(parts))
    return text


def _read_hex(reader: TextReader) -> Reading[str]:
    digits = ""
    while len(digits) < 4 and (yield from reader.peek()):
        digits += reader.take(1)
    if not _HEX.fullmatch(digits):
        raise MalformedCall("a string has a wrong \\u escape")
    return digits


def _read_key(reader: TextReader, emit: Emit) -> Reading[None]:
    yield from read_string(reader, emit)
    yield from reader.run(SPACE, emit)
    yield from reader.require(":")
    emit(":")


def _read_scalar(reader: TextReader, emit: Emit) -> Reading[None]:
    """Take a number, true, false or null, which is emitted when it is complete."""
    text = yield from reader.word(_SCALAR, "a number")
    if not _SCALARS.fullmatch(text):
        raise MalformedCall(f"{text[:20]!r} is not JSON" if text else "a JSON value is missing")
    emit(text)


def _next_member(reader: TextReader, emit: Emit, open_brackets: list[str]) -> Reading[bool]:
    """Take what follows a value: closers, then a comma and the next key.

    Return whether a value comes next.
    """
    while open_brackets:
        yield from reader.run(SPACE, emit)
        character = yield from reader.peek()
        if character == _CLOSER[open_brackets[-1]]:
            emit(reader.take(1))
            open_brackets.pop()
        elif character == ",":
            emit(reader.take(1))
            if open_brackets[-1] == "{":
                yield from reader.run(SPACE, emit)
                yield from _read_key(reader, emit)
            return True
        else:
            raise MalformedCall(f"its JSON breaks off before {character!r}" if character else "the text ends in its JSON")
    return False
