"""Calls as a Python list, ``[NAME(KEY=VALUE, ...), ...]``, that is the answer: Llama 3.2, ToolACE.

Nothing but the list says that these are calls, so it must stand where the answer begins and name tools of the request.
"""

from __future__ import annotations

import json
import re

from hasten.text.answers.call_shape import CallShape, ParameterShape
from hasten.text.answers.python_reader import read_literal
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import MalformedCall, NotACall, Reading, TextReader

NAME = re.compile(r"[A-Za-z0-9_.-]*")


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    while True:
        yield from reader.space()
        name = yield from read_name(reader, sink)
        sink.begin(name)
        yield from read_arguments(reader, sink)
        yield from reader.space()
        if not (yield from reader.accept(",")):
            break
        sink.end()
    yield from reader.require("]")
    sink.end()


def read_name(reader: TextReader, sink: CallSink) -> Reading[str]:
    """Take the name of a tool and ``(``. Raises ``NotACall`` if it names none."""
    try:
        name = yield from reader.word(NAME, "its name")
        yield from reader.require("(")
    except MalformedCall as error:
        raise NotACall(str(error)) from error
    if not sink.is_tool(name):
        raise NotACall("it names none of the tools")
    return name


def read_arguments(reader: TextReader, sink: CallSink) -> Reading[None]:
    """Take named arguments and ``)``."""
    names: set[str] = set()
    yield from reader.space()
    while not (yield from reader.accept(")")):
        name = yield from reader.word(NAME, "the name of an argument")
        yield from reader.space()
        yield from reader.require("=")
        if not name or name in names:
            raise MalformedCall(f"the name of an argument is {name!r}" if not name else f"it has the argument {name!r} twice")
        sink.arguments(("{" if not names else ", ") + json.dumps(name) + ": ")
        names.add(name)
        yield from read_literal(reader, sink.arguments)
        yield from reader.space()
        if not (yield from reader.accept(",")):
            yield from reader.require(")")
            break
        yield from reader.space()
    sink.arguments("}" if names else "{}")


SYNTAX = ToolSyntax(
    read=read,
    starts=("[",),
    shape=CallShape(
        first="[",
        before="{name}(",
        after=")",
        separator=", ",
        last="]",
        parameters=ParameterShape(before="{name}=", after="", separator=", ", strings="python"),
    ),
)
