"""MiniMax M2: tags with the names of tools and arguments as attributes.

``<minimax:tool_call><invoke name="NAME"><parameter name="KEY">text</parameter></invoke></minimax:tool_call>``

The tool's schema says what the text of an argument is.
"""

from __future__ import annotations

from hasten.text.answers.call_shape import CallShape, ParameterShape
from hasten.text.answers.parameter_reader import NoTrim, ParameterWriter
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import MalformedCall, Markers, Reading, TextReader

OPENER, CLOSER = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, PARAMETER = "<invoke name=", "<parameter name="
_NAME_END = Markers(">", "\n")
_VALUE_END = Markers("</parameter>")


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from reader.space()
    yield from reader.require(INVOKE)
    while True:
        name = unquoted((yield from reader.word_until(_NAME_END, "its name"))[0])
        sink.begin(name)
        parameters = ParameterWriter(sink, name)
        yield from reader.space()
        while (yield from reader.accept(PARAMETER)):
            key = unquoted((yield from reader.word_until(_NAME_END, "the name of an argument"))[0])
            if (yield from parameters.read(reader, key, _VALUE_END, NoTrim)) is None:
                raise MalformedCall("the text ends in an argument")
            yield from reader.space()
        parameters.end()
        yield from reader.require("</invoke>")
        sink.end()
        yield from reader.space()
        if not (yield from reader.accept(INVOKE)):
            break
    if (yield from reader.peek()):
        yield from reader.require(CLOSER)


def unquoted(name: str) -> str:
    name = name.strip()
    return name[1:-1] if len(name) >= 2 and name[0] == name[-1] and name[0] in "'\"" else name


SYNTAX = ToolSyntax(
    read=read,
    openers=(OPENER,),
    markers=(CLOSER,),
    shape=CallShape(
        first="<minimax:tool_call>\n",
        before='<invoke name="{name}">\n',
        after="</invoke>\n",
        last="</minimax:tool_call>",
        parameters=ParameterShape(before='<parameter name="{name}">', after="</parameter>\n"),
        trigger=OPENER,
    ),
)
