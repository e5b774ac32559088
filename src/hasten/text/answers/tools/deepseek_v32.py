"""DeepSeek V3.2: tags with the token ``｜DSML｜``, which say whether an argument is text.

A call: ``<｜DSML｜invoke name="NAME">`` with ``<｜DSML｜parameter name="KEY" string="true">text</｜DSML｜parameter>``.

``string="false"``: the text is JSON.
"""

from __future__ import annotations

import re

from hasten.text.answers.call_shape import CallShape, ParameterShape
from hasten.text.answers.parameter_reader import NoTrim, ParameterWriter
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import MalformedCall, Markers, Reading, TextReader

TAG = "｜DSML｜"
OPENER, CLOSER = f"<{TAG}function_calls>", f"</{TAG}function_calls>"
INVOKE, PARAMETER = f"<{TAG}invoke name=", f"<{TAG}parameter name="
_HEADER_END, _VALUE_END = Markers(">", "\n"), Markers(f"</{TAG}parameter>")
_PARAMETER = re.compile(r'"([^"]*)" string="(true|false)"')


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from reader.space()
    yield from reader.require(INVOKE)
    while True:
        name = (yield from reader.word_until(_HEADER_END, "its name"))[0].strip().strip('"')
        sink.begin(name)
        parameters = ParameterWriter(sink, name)
        yield from reader.space()
        while (yield from reader.accept(PARAMETER)):
            header = _PARAMETER.fullmatch((yield from reader.word_until(_HEADER_END, "the name of an argument"))[0])
            if header is None:
                raise MalformedCall("the name of an argument is not followed by its kind")
            is_json = header[2] == "false"
            if (yield from parameters.read(reader, header[1], _VALUE_END, NoTrim, is_json=is_json)) is None:
                raise MalformedCall("the text ends in an argument")
            yield from reader.space()
        parameters.end()
        yield from reader.require(f"</{TAG}invoke>")
        sink.end()
        yield from reader.space()
        if not (yield from reader.accept(INVOKE)):
            break
    if (yield from reader.peek()):
        yield from reader.require(CLOSER)


SYNTAX = ToolSyntax(
    read=read,
    openers=(OPENER,),
    markers=(TAG,),
    shape=CallShape(
        first=OPENER + "\n",
        before=INVOKE + '"{name}">\n',
        after=f"</{TAG}invoke>\n",
        last=CLOSER,
        parameters=ParameterShape(before=PARAMETER + '"{name}" string="{is_text}">', after=f"</{TAG}parameter>\n"),
        trigger=OPENER,
    ),
)
