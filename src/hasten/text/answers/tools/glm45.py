"""GLM 4.5 and 4.6: ``<tool_call>NAME<arg_key>KEY</arg_key><arg_value>text</arg_value></tool_call>``.

The tool's schema says what the text of an argument is.
"""

from __future__ import annotations

from hasten.text.answers.call_shape import CallShape, ParameterShape
from hasten.text.answers.parameter_reader import NoTrim, ParameterWriter
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import MalformedCall, Markers, Reading, TextReader

OPENER, CLOSER = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_NAME_END, _KEY_END, _VALUE_END = Markers(KEY, CLOSER), Markers(KEY_END), Markers(VALUE_END)


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    name, marker = yield from reader.word_until(_NAME_END, "its name")
    sink.begin(name.strip())
    parameters = ParameterWriter(sink, name.strip())
    while marker == KEY:
        key, _ = yield from reader.word_until(_KEY_END, "the name of an argument")
        yield from reader.space()
        yield from reader.require(VALUE)
        if (yield from parameters.read(reader, key.strip(), _VALUE_END, NoTrim)) is None:
            raise MalformedCall("the text ends in an argument")
        yield from reader.space()
        if not (yield from reader.accept(KEY)):
            yield from reader.require(CLOSER)
            break
    parameters.end()
    sink.end()


SYNTAX = ToolSyntax(
    read=read,
    openers=(OPENER,),
    markers=(CLOSER, KEY, KEY_END, VALUE, VALUE_END),
    shape=CallShape(
        before="<tool_call>{name}\n",
        after="</tool_call>",
        separator="\n",
        parameters=ParameterShape(before="<arg_key>{name}</arg_key>\n<arg_value>", after="</arg_value>\n"),
        trigger=OPENER,
    ),
)
