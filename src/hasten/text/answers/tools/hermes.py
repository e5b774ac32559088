"""Hermes and Qwen 2.5, 3: a JSON object between tags, for each call.

A call: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.
"""

from __future__ import annotations

from hasten.text.answers.call_object import read_call_object
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Reading, TextReader

OPENER, CLOSER = "<tool_call>", "</tool_call>"


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from reader.space()
    yield from reader.require("{")
    yield from read_call_object(reader, sink)
    yield from reader.space()
    if (yield from reader.peek()):  # the closer is a stop token in some checkpoints
        yield from reader.require(CLOSER)
    sink.end()


SYNTAX = ToolSyntax(
    read=read,
    openers=(OPENER,),
    markers=(CLOSER,),
    shape=CallShape(
        before='<tool_call>\n{"name": "{name}", "arguments": ', after="}\n</tool_call>", separator="\n", trigger=OPENER
    ),
)
