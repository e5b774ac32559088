"""Calls written as one JSON object: ``{"name": ..., "arguments": {...}}``, the members in any order."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hasten.text.answers.json_reader import read_string, read_text, read_value
from hasten.text.answers.syntax import CallSink
from hasten.text.answers.text_reader import MalformedCall, NotACall, Reading, TextReader

_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type", "function")  # members that a call may have besides


def read_json_arguments(reader: TextReader, sink: CallSink) -> Reading[None]:
    """Take a JSON object as the arguments of the open call."""
    if (yield from reader.peek()) != "{":
        raise MalformedCall("its arguments are no JSON object")
    yield from read_value(reader, sink.arguments)


def end_marked_call(reader: TextReader, sink: CallSink, call_end: str, section_end: str) -> Reading[None]:
    """Take the marker at the end of a call, and that of the section if it comes next."""
    yield from reader.space()
    if (yield from reader.peek()):
        yield from reader.require(call_end)
    sink.end()
    yield from reader.space()
    yield from reader.accept(section_end)


@dataclass(slots=True)
class _Members:
    """What was read of a call object."""

    name: str | None = None
    call_id: str | None = None
    waiting: list[str] = field(default_factory=list)  # arguments that came before the name
    has_arguments: bool = False
    has_begun: bool = False


def read_call_object(reader: TextReader, sink: CallSink, *, is_marked: bool = True) -> Reading[None]:
    """Take the members of a call object after its ``{``, and the ``}``. The call is open afterwards.

    ``is_marked`` False: nothing but the object says that this is a call, so it has to name a tool of the request. Raises
    ``NotACall`` then.
    """
    found = _Members()
    yield from reader.space()
    while True:
        key = yield from read_text(reader)
        yield from reader.space()
        yield from reader.require(":")
        yield from reader.space()
        if not is_marked and key not in ("name", *_ARGUMENTS, *_OTHERS):
            raise NotACall("its members are not those of a call")
        yield from _read_member(key, reader, sink, found)
        if found.name is not None and not is_marked and not sink.is_tool(found.name):
            raise NotACall("it names none of the tools")
        yield from reader.space()
        if not (yield from reader.accept(",")):
            break
        yield from reader.space()
    yield from reader.require("}")
    if found.name is None:
        raise MalformedCall("it has no name") if is_marked else NotACall("it has no name")
    if not is_marked and not found.has_arguments:
        raise NotACall("it has no arguments")
    _begin(sink, found)
    if not found.has_arguments:
        sink.arguments("{}")


def _read_member(key: str, reader: TextReader, sink: CallSink, found: _Members) -> Reading[None]:
    if key == "name":
        if found.name is not None:
            raise MalformedCall("it has two names")
        found.name = yield from read_text(reader)
        if found.has_arguments:
            _begin(sink, found)
    elif key in _ARGUMENTS:
        if found.has_arguments:
            raise MalformedCall("it has arguments twice")
        found.has_arguments = True
        yield from _read_arguments(reader, sink, found)
    elif key == "id" and (yield from reader.peek()) == '"':
        found.call_id = yield from read_text(reader)
    else:
        yield from read_value(reader, lambda text: None)


def _read_arguments(reader: TextReader, sink: CallSink, found: _Members) -> Reading[None]:
    first = yield from reader.peek()
    if first == '"':  # some models write the object as JSON in a string
        quoted: list[str] = []
        yield from read_string(reader, quoted.append)
        found.waiting.append(_object_in(json.loads("".join(quoted))))
    elif first == "{":
        if found.name is not None:
            _begin(sink, found)
            yield from read_value(reader, sink.arguments)
        else:
            yield from read_value(reader, found.waiting.append)
    elif (yield from reader.accept("null")):
        found.waiting.append("{}")
    else:
        raise MalformedCall("its arguments are no JSON object")


def _begin(sink: CallSink, found: _Members) -> None:
    assert found.name is not None
    if not found.has_begun:
        sink.begin(found.name, found.call_id)
        found.has_begun = True
    for text in found.waiting:
        sink.arguments(text)
    found.waiting.clear()


def _object_in(text: str) -> str:
    """Return a JSON object that a string holds."""
    reader, parts = TextReader(), list[str]()
    reader.feed(text.strip())
    reader.end()
    if text.strip()[:1] != "{":
        raise MalformedCall("its arguments are no JSON object")
    for _ in read_value(reader, parts.append):
        raise AssertionError("a reader that has ended waits for text")
    if reader.num_waiting:
        raise MalformedCall("text follows its arguments")
    return "".join(parts)
