"""Gemma 4: keys without quotes, and texts between ``<|"|>``.

A call: ``<|tool_call>call:NAME{KEY:VALUE,...}<tool_call|>``.
"""

from __future__ import annotations

import json
import re

from hasten.text.answers.call_shape import CallShape, ParameterShape
from hasten.text.answers.json_reader import MAX_DEPTH
from hasten.text.answers.parameter_reader import escaped
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Emit, MalformedCall, Markers, Reading, TextReader

OPENER, CLOSER, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_SCALARS = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_KEY_END = Markers(":", ",", "{", "}", "[", "]")
_QUOTE_END = Markers(QUOTE)
_CLOSER = {"{": "}", "[": "]"}


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from reader.require("call:")
    name = yield from reader.word(_NAME, "its name")
    if (yield from reader.peek()) != "{":
        raise MalformedCall("its arguments are no object")
    sink.begin(name)
    yield from _read_value(reader, sink.arguments)
    if (yield from reader.peek()):
        yield from reader.require(CLOSER)
    sink.end()


def _read_value(reader: TextReader, emit: Emit) -> Reading[None]:
    """Take a value, and emit it as JSON."""
    open_brackets: list[str] = []
    while True:
        first = yield from reader.peek()
        if first in _CLOSER:
            if len(open_brackets) == MAX_DEPTH:
                raise MalformedCall(f"a value is nested more than {MAX_DEPTH} levels deep")
            emit(reader.take(1))
            open_brackets.append(first)
            if (yield from reader.peek()) != _CLOSER[first]:
                if first == "{":
                    yield from _read_key(reader, emit)
                continue
        elif (yield from reader.accept(QUOTE)):
            yield from _read_text(reader, emit)
        else:
            word = yield from reader.word(_SCALAR, "a number")
            word = "null" if word == "None" else word  # templates write it so
            if not _SCALARS.fullmatch(word):
                raise MalformedCall(f"{word[:20]!r} is no value" if word else "a value is missing")
            emit(word)
        while open_brackets and (yield from reader.accept(_CLOSER[open_brackets[-1]])):
            emit(_CLOSER[open_brackets.pop()])
        if not open_brackets:
            return
        yield from reader.require(",")
        emit(", ")
        if open_brackets[-1] == "{":
            yield from _read_key(reader, emit)


def _read_key(reader: TextReader, emit: Emit) -> Reading[None]:
    if (yield from reader.accept(QUOTE)):
        yield from _read_text(reader, emit)
        yield from reader.require(":")
    else:
        key, marker = yield from reader.word_until(_KEY_END, "a key")
        if marker != ":" or not key:
            raise MalformedCall("a key is not followed by a value")
        emit(json.dumps(key, ensure_ascii=False))
    emit(": ")


def _read_text(reader: TextReader, emit: Emit) -> Reading[None]:
    emit('"')
    if (yield from reader.until(_QUOTE_END, lambda text: emit(escaped(text)))) is None:
        raise MalformedCall("the text ends in a string")
    emit('"')


SYNTAX = ToolSyntax(
    read=read,
    openers=(OPENER,),
    markers=(CLOSER, QUOTE),
    shape=CallShape(
        before="<|tool_call>call:{name}{",
        after="}<tool_call|>",
        parameters=ParameterShape(before="{name}:", after="", separator=",", strings="gemma"),
        trigger=OPENER,
    ),
)
