"""``Answer``: content, reasoning and tool calls of a model's text, and its deltas. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. The model wrote the name, so it may be none of the request's tools."""

    id: str
    name: str
    arguments: str  # a JSON object


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """What one piece of text adds to the call at ``index``."""

    index: int
    id: str | None = None  # in the first delta of a call only, as ``name``
    name: str | None = None
    arguments: str = ""  # all fragments of a call, joined, are its arguments
    # The call is malformed: its text follows as content, and the next call takes its index.
    is_withdrawn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDelta:
    """What one piece of text adds to an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, as far as it was read."""

    content: str = ""
    reasoning: str | None = None  # None: the text has no thought
    tool_calls: tuple[ToolCall, ...] = ()
    warnings: tuple[str, ...] = ()  # about calls that are malformed, which are content, or that name an unknown tool
