"""Calls written as a JSON array of call objects."""

from __future__ import annotations

from hasten.text.answers.call_object import read_call_object
from hasten.text.answers.syntax import CallSink
from hasten.text.answers.text_reader import Reading, TextReader


def read_call_list(reader: TextReader, sink: CallSink) -> Reading[None]:
    """Take the calls after ``[``, and ``]``. Each of them ends before the next begins."""
    while True:
        yield from reader.space()
        yield from reader.require("{")
        yield from read_call_object(reader, sink)
        yield from reader.space()
        if not (yield from reader.accept(",")):
            break
        sink.end()
    yield from reader.require("]")
    sink.end()
