"""Qwen3-Coder, Qwen 3.5: tags for the tool and for each argument.

``<tool_call><function=NAME><parameter=KEY>text</parameter></function></tool_call>``

The tool's schema says what the text of an argument is.
"""

from __future__ import annotations

from hasten.text.answers.call_shape import CallShape, ParameterShape
from hasten.text.answers.parameter_reader import ParameterWriter, TextTrim
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import MalformedCall, Markers, Reading, TextReader

OPENER, CLOSER = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
_NAME_END = Markers(">", "\n")
_VALUE_END = Markers("</parameter>")


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    if opener == OPENER:
        yield from reader.space()
        yield from reader.require(FUNCTION)
    name, _ = yield from reader.word_until(_NAME_END, "its name")
    sink.begin(name.strip())
    parameters = ParameterWriter(sink, name.strip())
    yield from reader.space()
    while (yield from reader.accept(PARAMETER)):
        key, _ = yield from reader.word_until(_NAME_END, "the name of an argument")
        if (yield from parameters.read(reader, key.strip(), _VALUE_END, TextTrim)) is None:
            raise MalformedCall("the text ends in an argument")
        yield from reader.space()
    parameters.end()
    yield from reader.require("</function>")
    yield from reader.space()
    if opener == OPENER and (yield from reader.peek()):
        yield from reader.require(CLOSER)
    sink.end()


SYNTAX = ToolSyntax(
    read=read,
    openers=(OPENER, FUNCTION),  # the models leave out the first one at times
    markers=(CLOSER,),
    shape=CallShape(
        before="<tool_call>\n<function={name}>\n",
        after="</function>\n</tool_call>",
        separator="\n",
        parameters=ParameterShape(before="<parameter={name}>\n", after="\n</parameter>\n"),
        trigger=OPENER,
    ),
)
