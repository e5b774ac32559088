"""Python literals that arrive in pieces, as JSON.

They are texts, numbers, True, False, None, lists, tuples and dicts.
"""

from __future__ import annotations

import json
import re

from hasten.text.answers.json_reader import MAX_DEPTH
from hasten.text.answers.text_reader import SPACE, Emit, MalformedCall, Reading, TextReader

_WORD = re.compile(r"[-+.\w]*")
_PLAIN = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_CLOSER = {"{": "}", "[": "]", "(": ")"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_ESCAPES |= {character: character for character in "\\'\""}
_NUM_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9A-Fa-f]+")


def read_literal(reader: TextReader, emit: Emit) -> Reading[None]:
    """Take one literal, and emit it as JSON. Raises ``MalformedCall``."""
    open_brackets: list[str] = []
    while True:
        yield from reader.space()
        first = yield from reader.peek()
        if first in _CLOSER:
            if len(open_brackets) == MAX_DEPTH:
                raise MalformedCall(f"a value is nested more than {MAX_DEPTH} levels deep")
            reader.take(1)
            open_brackets.append(first)
            emit("{" if first == "{" else "[")
            yield from reader.space()
            if (yield from reader.peek()) != _CLOSER[first]:
                if first == "{":
                    yield from _read_key(reader, emit)
                continue
        else:
            yield from _read_scalar(reader, emit)
        if not (yield from _next_item(reader, emit, open_brackets)):
            return


def literal_json(text: str) -> str | None:
    """Return the JSON of a text that is one literal; None if it is none."""
    reader, parts = TextReader(), list[str]()
    reader.feed(text.strip())
    reader.end()
    try:
        for _ in read_literal(reader, parts.append):
            raise AssertionError("a reader that has ended waits for text")
    except MalformedCall:
        return None
    return None if reader.num_waiting else "".join(parts)


def _read_scalar(reader: TextReader, emit: Emit) -> Reading[None]:
    first = yield from reader.peek()
    if first in _PLAIN:
        yield from _read_text(reader, emit)
        return
    word = yield from reader.word(_WORD, "a number")
    if word in _WORDS:
        emit(_WORDS[word])
    elif _NUMBER.fullmatch(word):
        is_integer = re.fullmatch(r"[-+]?[0-9]+", word) is not None
        number = json.dumps(int(word) if is_integer else float(word))
        if number in ("Infinity", "-Infinity"):
            raise MalformedCall("a number is out of range")
        emit(number)
    else:
        raise MalformedCall(f"{word[:20]!r} is no value" if word else "a value is missing")


def _read_text(reader: TextReader, emit: Emit) -> Reading[None]:
    quote = reader.take(1)
    emit('"')
    while True:
        yield from reader.run(_PLAIN[quote], lambda text: emit(json.dumps(text, ensure_ascii=False)[1:-1]))
        character = yield from reader.peek()
        if not character:
            raise MalformedCall("the text ends in a string")
        if character == quote:
            reader.take(1)
            emit('"')
            return
        emit(json.dumps((yield from _read_escape(reader)), ensure_ascii=False)[1:-1])


def _read_escape(reader: TextReader) -> Reading[str]:
    """Take a backslash and what belongs to it, and return the text that they stand for."""
    reader.take(1)
    kind = yield from reader.peek()
    if not kind:
        raise MalformedCall("the text ends in a string")
    reader.take(1)
    if kind not in _NUM_DIGITS:
        return _ESCAPES.get(kind, "\\" + kind)  # Python leaves unknown escapes as they are
    digits = ""
    while len(digits) < _NUM_DIGITS[kind] and (yield from reader.peek()):
        digits += reader.take(1)
    if not _HEX.fullmatch(digits) or int(digits, 16) > 0x10FFFF or 0xD800 <= int(digits, 16) < 0xE000:
        raise MalformedCall(f"a string has a wrong \\{kind} escape")
    return chr(int(digits, 16))


def _read_key(reader: TextReader, emit: Emit) -> Reading[None]:
    if (yield from reader.peek()) not in _PLAIN:
        raise MalformedCall("a key of a dict is no text")
    yield from _read_text(reader, emit)
    yield from reader.run(SPACE, lambda text: None)
    yield from reader.require(":")
    emit(": ")


def _next_item(reader: TextReader, emit: Emit, open_brackets: list[str]) -> Reading[bool]:
    """Take what follows a literal: closers, then a comma and the next key.

    Return whether a value comes next.
    """
    while open_brackets:
        yield from reader.space()
        bracket = open_brackets[-1]
        if (yield from reader.accept(",")):
            yield from reader.space()
            if (yield from reader.peek()) != _CLOSER[bracket]:
                emit(", ")
                if bracket == "{":
                    yield from _read_key(reader, emit)
                return True
        if not (yield from reader.accept(_CLOSER[bracket])):
            raise MalformedCall("a value breaks off")
        emit("}" if bracket == "{" else "]")
        open_brackets.pop()
    return False
