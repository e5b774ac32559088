"""Kimi K2: a marked id with the name in it, and a JSON object.

A call: ``<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>``.
"""

from __future__ import annotations

from hasten.text.answers.call_object import end_marked_call, read_json_arguments
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Markers, Reading, TextReader

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_ID_END = Markers(ARGUMENTS)


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    if opener == SECTION:
        yield from reader.space()
        yield from reader.require(CALL)
    call_id, _ = yield from reader.word_until(_ID_END, "its id")
    call_id = call_id.strip()
    name = call_id.removeprefix("functions.").rpartition(":")[0] or call_id
    sink.begin(name, call_id)  # the model's id, which later prompts repeat
    yield from reader.space()
    yield from read_json_arguments(reader, sink)
    yield from end_marked_call(reader, sink, CALL_END, SECTION_END)


SYNTAX = ToolSyntax(
    read=read,
    openers=(SECTION, CALL),
    markers=(SECTION_END, ARGUMENTS, CALL_END),
    shape=CallShape(
        first=SECTION, before=CALL + "functions.{name}:{number}" + ARGUMENTS, after=CALL_END, last=SECTION_END, trigger=SECTION
    ),
)
