"""Llama 4: calls as a Python list, that may stand between ``<|python_start|>`` and ``<|python_end|>``."""

from __future__ import annotations

from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import Reading, TextReader
from hasten.text.answers.tools import pythonic

OPENER, CLOSER = "<|python_start|>", "<|python_end|>"


def read(opener: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    if opener == OPENER:
        yield from reader.space()
        yield from reader.require("[")
    yield from pythonic.read("[", reader, sink)
    yield from reader.space()
    yield from reader.accept(CLOSER)


SYNTAX = ToolSyntax(read=read, openers=(OPENER,), starts=("[",), markers=(CLOSER,), shape=pythonic.SYNTAX.shape)
