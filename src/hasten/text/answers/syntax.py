"""What a family's file declares: how its models write tool calls, and how they write thoughts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasten.core.thought_marks import ThoughtMarks
from hasten.text.answers.answer_writer import AnswerWriter
from hasten.text.answers.call_shape import CallShape
from hasten.text.answers.text_reader import Reading, TextReader

# Reads one call or several after the opener that was taken. Ends each one with ``CallSink.end``. Raises ``MalformedCall``.
ReadCalls = Callable[[str, TextReader, "CallSink"], Reading[None]]
# Reads an answer from its start to its end.
ReadAnswer = Callable[[TextReader, "CallSink"], Reading[None]]


class CallSink:
    """Where a family's reader puts calls.

    The text of a call is kept until it ends, and is content if it is malformed.
    """

    def __init__(self, reader: TextReader, writer: AnswerWriter) -> None:
        self._reader, self.writer = reader, writer

    def is_tool(self, name: str) -> bool:
        """Return whether the request has a tool of this name, or no tools at all."""
        return not self.writer.tools or name in self.writer.tools

    def begin(self, name: str, call_id: str | None = None) -> None:
        self.writer.begin_call(name, call_id)

    def arguments(self, text: str) -> None:
        self.writer.add_arguments(text)

    def end(self) -> None:
        """The call is complete; what follows may be another."""
        self.writer.end_call()
        self._reader.keep()


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """How the models of a family write tool calls.

    ``openers``: texts that begin a call, wherever they stand. ``starts``: texts that begin a call where the content begins.
    ``read_answer``: for families whose markup spans the answer, instead of ``read``.
    """

    shape: CallShape
    read: ReadCalls | None = None
    openers: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()  # further literals of the syntax, some of which are special tokens in some checkpoints
    read_answer: ReadAnswer | None = None
    older_shape: tuple[str, CallShape] | None = None  # of checkpoints whose chat template lacks this text

    def shape_for(self, template: str) -> CallShape:
        """Return the shape of calls that a chat template writes; the newest for an empty text."""
        if self.older_shape is not None and template and self.older_shape[0] not in template:
            return self.older_shape[1]
        return self.shape


@dataclass(frozen=True, slots=True)
class ReasoningSyntax:
    """How the models of a family write thoughts: between two literals."""

    opener: str
    closer: str
    tool_syntax: str | None = None  # the tool parser that reads the thoughts too, because one markup spans both
    headers: tuple[str, ...] = ()  # of what may follow thoughts, the answer's first; empty where the closer alone ends a thought
    before_header: str = ""  # between the closer and a header

    @property
    def marks(self) -> ThoughtMarks:
        """The marks of thoughts while tokens are sampled."""
        if not self.headers:
            return ThoughtMarks(self.opener, (self.closer,), self.closer)
        return ThoughtMarks(self.opener, self.headers, self.closer + self.before_header + self.headers[0])
