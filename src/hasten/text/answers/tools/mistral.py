"""Mistral: a marker and a list of calls, or since 2025 a marker for each call.

``[TOOL_CALLS] [{"name": ..., "arguments": {...}}]``, or ``[TOOL_CALLS]NAME[ARGS]{...}``.
"""

from __future__ import annotations

import re

from hasten.text.answers.call_list import read_call_list
from hasten.text.answers.call_object import read_json_arguments
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import MalformedCall, Reading, TextReader

OPENER = "[TOOL_CALLS]"
CALL_ID, ARGS = "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[A-Za-z0-9_.-]*")


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from reader.space()
    if (yield from reader.accept("[")):
        yield from read_call_list(reader, sink)
        return
    name = yield from reader.word(_NAME, "its name")
    call_id = None
    if (yield from reader.accept(CALL_ID)):
        call_id = yield from reader.word(_NAME, "its id")
    yield from reader.accept(ARGS)
    yield from reader.space()
    if (yield from reader.peek()) != "{":
        raise MalformedCall("its arguments are no JSON object")
    sink.begin(name, call_id)
    yield from read_json_arguments(reader, sink)
    sink.end()


SYNTAX = ToolSyntax(
    read=read,
    openers=(OPENER,),
    markers=(CALL_ID, ARGS),
    shape=CallShape(before="[TOOL_CALLS]{name}[ARGS]", after="", trigger=OPENER),
    older_shape=(
        ARGS,
        CallShape(
            first="[TOOL_CALLS] [",
            before='{"name": "{name}", "arguments": ',
            after="}",
            separator=", ",
            last="]",
            trigger=OPENER,
        ),
    ),
)
