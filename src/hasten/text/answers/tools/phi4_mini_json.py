"""Phi-4-mini: ``functools[{"name": ..., "arguments": {...}}, ...]``."""

from __future__ import annotations

from hasten.text.answers.call_list import read_call_list
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Reading, TextReader

OPENERS = ("functools[", "<|tool_call|>[")
CLOSER = "<|/tool_call|>"


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from read_call_list(reader, sink)
    yield from reader.accept(CLOSER)


SYNTAX = ToolSyntax(
    read=read,
    openers=OPENERS,
    markers=("<|tool_call|>", CLOSER),
    shape=CallShape(
        first="functools[",
        before='{"name": "{name}", "arguments": ',
        after="}",
        separator=", ",
        last="]",
        trigger=OPENERS[0],
    ),
)
