"""``AnswerWriter``: collects what the parsers of one answer find, as an ``Answer`` and as deltas."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import replace

from hasten.core.answer import Answer, AnswerDelta, ToolCall, ToolCallDelta
from hasten.core.errors import show
from hasten.core.tool_definition import ToolDefinition
from hasten.core.unicode_text import is_unicode
from hasten.text.answers.text_field import TextField
from hasten.text.answers.text_reader import MalformedCall

MAX_WARNINGS = 8
ID_LENGTH = 9  # of letters and digits: the chat templates of Mistral take no other ids
_MAX_NAME = 128
_ID_CHARACTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(ID_LENGTH))


class AnswerWriter:
    """Content, reasoning and calls, in the order of the text. ``tools``: those of the request, by name."""

    def __init__(self, tools: Mapping[str, ToolDefinition], make_id: Callable[[], str]) -> None:
        self.tools = tools
        self.content, self.reasoning = TextField(is_stripped=False), TextField(is_stripped=True)
        self._make_id = make_id
        self._calls: list[ToolCall] = []  # complete ones
        self._open: ToolCall | None = None
        self._arguments: list[str] = []  # of the open call
        self._deltas: list[ToolCallDelta] = []
        self._new_arguments: list[str] = []  # that no delta has
        self._warnings: list[str] = []
        self._num_unlisted = 0
        self._has_reasoning = False

    def begin_thought(self) -> None:
        self._has_reasoning = True
        self.content.mark()
        self.reasoning.mark()

    def begin_call(self, name: str, call_id: str | None = None) -> None:
        """Begin a call. Raises ``MalformedCall`` for an empty name, one that is too long or no text."""
        assert self._open is None, "the call before has not ended"
        if not name or len(name) > _MAX_NAME or not is_unicode(name):
            raise MalformedCall(f"its name is {show(name)}")
        self._open = ToolCall(call_id or self._make_id(), name, "")
        self._deltas.append(ToolCallDelta(index=len(self._calls), id=self._open.id, name=name))

    def add_arguments(self, text: str) -> None:
        """Add a fragment to the arguments of the open call."""
        assert self._open is not None, "no call is open"
        if text:
            self._arguments.append(text)
            self._new_arguments.append(text)

    def end_call(self) -> None:
        """The open call is complete."""
        assert self._open is not None, "no call is open"
        if self.tools and self._open.name not in self.tools:
            self.warn(f"the answer calls {show(self._open.name)}, which is none of the tools")
        self._add_fragment()
        self._calls.append(replace(self._open, arguments="".join(self._arguments)))
        self._open = None
        self._arguments.clear()
        self.content.mark()

    def withdraw_call(self, text: str, warning: str | None) -> None:
        """Drop the open call, if there is one; the text that was to be a call is content."""
        if self._open is not None:
            self._add_fragment()
            self._deltas.append(ToolCallDelta(index=len(self._calls), is_withdrawn=True))
            self._open = None
            self._arguments.clear()
        self.content.add(text)
        if warning is not None:
            self.warn(warning)

    def warn(self, text: str) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(text)
        else:
            self._num_unlisted += 1

    def finish(self) -> None:
        self.content.finish()
        self.reasoning.finish()

    def take_delta(self) -> AnswerDelta:
        """Return what was added since the last call."""
        self._add_fragment()
        calls = tuple(self._deltas)
        self._deltas.clear()
        return AnswerDelta(content=self.content.take_new(), reasoning=self.reasoning.take_new(), tool_calls=calls)

    def answer(self) -> Answer:
        """Return all that was found. Calls that are not complete are not in it."""
        more = (f"{self._num_unlisted} further warnings",) if self._num_unlisted else ()
        return Answer(
            content=self.content.text,
            reasoning=self.reasoning.text if self._has_reasoning else None,
            tool_calls=tuple(self._calls),
            warnings=(*self._warnings, *more),
        )

    def _add_fragment(self) -> None:
        """Make a delta of the new arguments of the open call, or add them to the delta that begins it."""
        if not self._new_arguments:
            return
        text, index = "".join(self._new_arguments), len(self._calls)
        self._new_arguments.clear()
        before = self._deltas[-1] if self._deltas else None
        if before is not None and before.index == index and before.id is not None:
            self._deltas[-1] = replace(before, arguments=text)
        else:
            self._deltas.append(ToolCallDelta(index=index, arguments=text))
