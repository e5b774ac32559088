"""DeepSeek V3.1: a marked name and a JSON object, between markers of the section.

A call: ``<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>``.
"""

from __future__ import annotations

from hasten.text.answers.call_object import end_marked_call, read_json_arguments
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Markers, Reading, TextReader

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_NAME_END = Markers(SEPARATOR)


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    if opener == SECTION:
        yield from reader.space()
        yield from reader.require(CALL)
    name, _ = yield from reader.word_until(_NAME_END, "its name")
    sink.begin(name.strip())
    yield from reader.space()
    yield from read_json_arguments(reader, sink)
    yield from end_marked_call(reader, sink, CALL_END, SECTION_END)


SYNTAX = ToolSyntax(
    read=read,
    openers=(SECTION, CALL),
    markers=(SECTION_END, SEPARATOR, CALL_END),
    shape=CallShape(first=SECTION, before=CALL + "{name}" + SEPARATOR, after=CALL_END, last=SECTION_END, trigger=SECTION),
)
