"""Llama 3.1 to 3.3: the answer is a JSON object; several calls are joined by ``;``.

A call: ``{"name": ..., "parameters": {...}}``.

Nothing but the object says that it is a call, so it must stand where the answer begins and name a tool of the request.
``<|python_tag|>`` may stand before it.
"""

from __future__ import annotations

from hasten.text.answers.call_object import read_call_object
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Reading, TextReader

TAG = "<|python_tag|>"


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    if opener == TAG:
        yield from reader.space()
        yield from reader.require("{")
    while True:
        yield from reader.space()
        yield from read_call_object(reader, sink, is_marked=opener == TAG)
        sink.end()
        yield from reader.space()
        if not (yield from reader.accept(";")):
            return
        yield from reader.space()
        yield from reader.require("{")


SYNTAX = ToolSyntax(
    read=read,
    openers=(TAG,),
    starts=("{",),
    shape=CallShape(before='{"name": "{name}", "parameters": ', after="}", separator="; "),
)
