"""``AnswerParser``: reads the text of an answer while it is generated.

It knows no tokens, requests or chat templates.

``transformers.utils.chat_parsing.ResponseParser`` reads some of these syntaxes from declarations. It raises an error at a malformed
call, keeps the last of several contents, gives arguments only when they are complete, and its cost grows with the square of the
text. So the syntaxes are generators over a ``TextReader``; the tests compare both where both can read a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hasten.core.answer import Answer, AnswerDelta
from hasten.core.tool_definition import ToolDefinition
from hasten.text.answers.answer_writer import AnswerWriter, new_call_id
from hasten.text.answers.families import reasoning_syntax, tool_syntax
from hasten.text.answers.syntax import CallSink, ReasoningSyntax, ToolSyntax
from hasten.text.answers.text_reader import SPACE, MalformedCall, Markers, NotACall, Reading, TextReader

_SPACE = " \t\r\n"


class AnswerParser:
    """Reads one answer, in pieces.

    ``tool``, ``reasoning``: names of ``hasten.text.answers.families``; None reads no calls, or no thoughts.
    ``prompt``: the prompt's text, or its end: where it ends in the start of a thought, the answer begins inside the thought.

    Text that has neither calls nor thoughts is content as it is. However the text is cut into pieces, the answer is the same.
    """

    def __init__(
        self,
        tool: str | None = None,
        reasoning: str | None = None,
        *,
        prompt: str = "",
        tools: Sequence[ToolDefinition] = (),
        make_id: Callable[[], str] = new_call_id,
    ) -> None:
        thoughts = None if reasoning is None else reasoning_syntax(reasoning)
        if thoughts is not None and thoughts.tool_syntax is not None:
            tool, thoughts = thoughts.tool_syntax, None
        calls = None if tool is None else tool_syntax(tool)
        self._reader, self._writer = TextReader(), AnswerWriter({tool.name: tool for tool in tools}, make_id)
        sink = CallSink(self._reader, self._writer)
        if calls is not None and calls.read_answer is not None:
            self._parse = calls.read_answer(self._reader, sink)
        else:
            is_in_thought = thoughts is not None and prompt.rstrip(_SPACE).endswith(thoughts.opener.rstrip(_SPACE))
            self._parse = _read_answer(self._reader, sink, calls, thoughts, is_in_thought)
        self._is_done = False

    @property
    def answer(self) -> Answer:
        """The answer, as far as it was read."""
        return self._writer.answer()

    @property
    def num_waiting(self) -> int:
        """Characters that wait for the next piece, at most as many as a marker has."""
        return self._reader.num_waiting

    def feed(self, text: str) -> AnswerDelta:
        """Read a further piece of the text, and return what it adds."""
        self._reader.feed(text)
        self._run()
        return self._writer.take_delta()

    def finish(self) -> AnswerDelta:
        """Read what the last piece left open. Idempotent."""
        if not self._is_done:
            self._reader.end()
            self._run()
            self._writer.finish()
        return self._writer.take_delta()

    def _run(self) -> None:
        try:
            next(self._parse)
        except StopIteration:
            self._is_done = True


def parse_answer(
    text: str,
    tool: str | None = None,
    reasoning: str | None = None,
    *,
    prompt: str = "",
    tools: Sequence[ToolDefinition] = (),
    make_id: Callable[[], str] = new_call_id,
) -> Answer:
    """Return the answer that a complete text holds. Arguments are those of ``AnswerParser``."""
    parser = AnswerParser(tool, reasoning, prompt=prompt, tools=tools, make_id=make_id)
    parser.feed(text)
    parser.finish()
    return parser.answer


def _read_answer(
    reader: TextReader, sink: CallSink, calls: ToolSyntax | None, thoughts: ReasoningSyntax | None, is_in_thought: bool
) -> Reading[None]:
    writer = sink.writer
    openers = () if calls is None else calls.openers
    markers = Markers(*openers, *(() if thoughts is None else (thoughts.opener,)))
    ended_by = Markers(*(() if thoughts is None else (thoughts.closer,)))
    if thoughts is not None and is_in_thought:
        yield from _read_thought(reader, writer, thoughts, ended_by)
    while True:
        if calls is not None and calls.starts and writer.content.is_empty:
            yield from reader.run(SPACE, writer.content.add)
            if (yield from _read_start(reader, sink, calls)):
                continue
        marker = yield from reader.until(markers, writer.content.add)
        if marker is None:
            return
        if thoughts is not None and marker == thoughts.opener:
            yield from _read_thought(reader, writer, thoughts, ended_by)
        elif calls is not None:
            yield from read_calls(marker, reader, sink, calls)


def _read_start(reader: TextReader, sink: CallSink, calls: ToolSyntax) -> Reading[bool]:
    """Take calls, or what looks like them, where the content begins. Return whether there was any."""
    for start in calls.starts:
        if (yield from reader.accept(start)):
            yield from read_calls(start, reader, sink, calls)
            return True
    return False


def _read_thought(reader: TextReader, writer: AnswerWriter, thoughts: ReasoningSyntax, ended_by: Markers) -> Reading[None]:
    """Take a thought up to its end.

    One that does not end is a thought all the same: the answer was cut off.
    """
    writer.begin_thought()
    yield from reader.space()
    yield from reader.accept(thoughts.opener)  # some models write it again where the prompt ends in it
    yield from reader.until(ended_by, writer.reasoning.add)


def read_calls(opener: str, reader: TextReader, sink: CallSink, calls: ToolSyntax) -> Reading[None]:
    """Take calls after their opener. The text of a malformed one is content."""
    assert calls.read is not None
    reader.keep(opener)
    try:
        yield from calls.read(opener, reader, sink)
    except NotACall:
        sink.writer.withdraw_call(reader.kept(), None)
    except MalformedCall as error:
        text = reader.kept()
        sink.writer.withdraw_call(text, f"a tool call is malformed and was left in the text: {error}")
    else:
        reader.kept()
