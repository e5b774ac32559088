"""gpt-oss (harmony): messages in channels for thoughts, calls and the answer.

A thought: ``<|channel|>analysis<|message|>...<|end|>``. A call:
``<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>``.
Source: the guide to the OpenAI harmony response format.
"""

from __future__ import annotations

import re

from hasten.text.answers.call_object import read_json_arguments
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.syntax import CallSink, ToolSyntax
from hasten.text.answers.text_reader import SPACE, MalformedCall, Markers, Reading, TextReader

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_HEADER = Markers(START, CHANNEL)
_HEADER_END = Markers(MESSAGE)
_BODY_END = Markers(END, CALL, RETURN, START, CHANNEL)


def read_answer(reader: TextReader, sink: CallSink) -> Reading[None]:
    content = sink.writer.content
    # The prompt ends in ``<|start|>assistant``, so the rest of a header may come first.
    yield from reader.run(SPACE, content.add)
    opener: str | None = "to=" if (yield from reader.accept("to=")) else None
    while True:
        opener = opener or (yield from reader.until(_HEADER, content.add))
        if opener is None:
            return
        reader.keep(opener)
        try:
            opener = yield from _read_message(opener, reader, sink)
        except MalformedCall as error:
            opener = None
            sink.writer.withdraw_call(reader.kept(), f"a message is malformed and was left in the text: {error}")


def _read_message(opener: str, reader: TextReader, sink: CallSink) -> Reading[str | None]:
    """Take a message after the start of its header. Return the start of the next one, if it was taken."""
    header, _ = yield from reader.word_until(_HEADER_END, "its header")
    header = opener + header
    recipient = _RECIPIENT.search(header)
    if recipient is not None and recipient[1] != "assistant":
        yield from _read_call(recipient[1].removeprefix("functions."), reader, sink)
        reader.kept()
        return None
    reader.kept()
    writer, is_thought = sink.writer, header.rpartition(CHANNEL)[2].split()[:1] == ["analysis"]
    writer.content.mark()
    if is_thought:
        writer.begin_thought()
    marker = yield from reader.until(_BODY_END, writer.reasoning.add if is_thought else writer.content.add)
    writer.content.mark()
    return marker if marker in (START, CHANNEL) else None


def _read_call(name: str, reader: TextReader, sink: CallSink) -> Reading[None]:
    yield from reader.space()
    sink.begin(name)
    yield from read_json_arguments(reader, sink)
    yield from reader.space()
    if (yield from reader.peek()) and not (yield from reader.accept(CALL)):
        yield from reader.require(END)
    sink.end()


SYNTAX = ToolSyntax(
    read_answer=read_answer,
    markers=(START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN),
    shape=CallShape(
        before="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>", after="<|call|>", trigger=CHANNEL
    ),
)
