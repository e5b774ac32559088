"""DeepSeek V3 and R1: a marked type and name, then the arguments in a block of Markdown.

A call: ``<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`` and a block of ``json``, before ``<｜tool▁call▁end｜>``.
"""

from __future__ import annotations

from hasten.text.answers.call_object import end_marked_call, read_json_arguments
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Markers, Reading, TextReader
from hasten.text.answers.tools.deepseek_v31 import CALL, CALL_END, SECTION, SECTION_END, SEPARATOR

_TYPE_END, _NAME_END = Markers(SEPARATOR), Markers("\n", "```")


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    if opener == SECTION:
        yield from reader.space()
        yield from reader.require(CALL)
    yield from reader.word_until(_TYPE_END, "its type")
    name, marker = yield from reader.word_until(_NAME_END, "its name")
    sink.begin(name.strip())
    if marker == "\n":
        yield from reader.space()
        yield from reader.require("```")
    yield from reader.require("json")
    yield from reader.space()
    yield from read_json_arguments(reader, sink)
    yield from reader.space()
    yield from reader.require("```")
    yield from end_marked_call(reader, sink, CALL_END, SECTION_END)


SYNTAX = ToolSyntax(
    read=read,
    openers=(SECTION, CALL),
    markers=(SECTION_END, SEPARATOR, CALL_END),
    shape=CallShape(
        first=SECTION,
        before=CALL + "function" + SEPARATOR + "{name}\n```json\n",
        after="\n```" + CALL_END,
        separator="\n",
        last=SECTION_END,
        trigger=SECTION,
    ),
)
