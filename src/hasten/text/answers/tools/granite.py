"""Granite 3: ``<|tool_call|>[{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

from hasten.text.answers.call_list import read_call_list
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Reading, TextReader

OPENERS = ("<|tool_call|>", "<tool_call>")  # of Granite 3.1 and later, and of 3.0


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from reader.space()
    yield from reader.require("[")
    yield from read_call_list(reader, sink)


SYNTAX = ToolSyntax(
    read=read,
    openers=OPENERS,
    shape=CallShape(
        first="<|tool_call|>[",
        before='{"name": "{name}", "arguments": ',
        after="}",
        separator=", ",
        last="]",
        trigger=OPENERS[0],
    ),
)
