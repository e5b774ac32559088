"""``ContentWriter``: the events of an answer's content blocks, from the deltas of the engine's chat.

Blocks stand in the order of the answer: thoughts, texts, calls. A call is sent when it is complete, because a malformed one turns
out to be text; a tool with ``eager_input_streaming`` gets fragments of its input as they come. White space between blocks is left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from hasten.core.answer import ToolCallDelta
from hasten.core.output import Delta
from hasten.serving.anthropic.chat_input import CALL_PREFIX

Event = dict[str, Any]
PING_EVERY = 32  # deltas without an event: a long call would leave the client without a sign of life
_PING: Event = {"type": "ping"}


class ContentWriter:
    """``sign`` returns the signature of a thought. ``eager_tools``: names."""

    def __init__(
        self, sign: Callable[[str], str], *, eager_tools: Collection[str] = (), one_call: bool = False, omit_thoughts: bool = False
    ) -> None:
        self._sign, self._eager_tools, self._one_call, self._omit_thoughts = sign, eager_tools, one_call, omit_thoughts
        self._events: list[Event] = []
        self._index = -1  # of the last block
        self._open = ""  # the type of the open block
        self._thought: list[str] = []
        self._space = ""  # that may begin a text block
        self._call: tuple[str, str] | None = None  # id and name of the call that is read
        self._arguments: list[str] = []  # of the call, where no block of it is open
        self.num_calls = 0  # begun and not withdrawn
        self._num_silent = 0  # deltas without an event since the last one
        self.is_complete = False  # a second call has begun where one is allowed: the rest of the answer is not wanted

    def feed(self, delta: Delta) -> list[Event]:
        """Return the events of a delta."""
        if delta.reasoning:
            self._write_thought(delta.reasoning)
        calls = list(delta.tool_calls)
        while calls and self._call is not None and calls[0].id is None:  # text cannot stand inside of the open call
            self._read_call(calls.pop(0))
        if delta.text:
            self._write_text(delta.text)
        for call in calls:
            if not self.is_complete:
                self._read_call(call)
        self._num_silent = 0 if self._events else self._num_silent + 1
        if self._num_silent == PING_EVERY:
            self._num_silent = 0
            return [_PING]
        return self._take()

    def finish(self) -> list[Event]:
        """Return the events that end the content."""
        self._end_call()
        if self._space and self._index < 0:
            self._begin({"type": "text", "text": ""})
            self._add({"type": "text_delta", "text": self._space})
        self._end_block()
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _write_thought(self, text: str) -> None:
        if self._open != "thinking":
            self._end_call()
            self._begin({"type": "thinking", "thinking": "", "signature": ""})
            self._thought, self._space = [], ""
        self._thought.append(text)
        if not self._omit_thoughts:
            self._add({"type": "thinking_delta", "thinking": text})

    def _write_text(self, text: str) -> None:
        if self._open != "text" or self._call is not None:
            if text.isspace():
                self._space += text
                return
            text, self._space = self._space + text, ""
            self._end_call()
            if self._open != "text":
                self._begin({"type": "text", "text": ""})
        self._add({"type": "text_delta", "text": text})

    def _read_call(self, call: ToolCallDelta) -> None:
        if call.is_withdrawn:
            self._withdraw_call()
            return
        if call.id is not None:
            self._end_call()
            if self._one_call and self.num_calls:
                self.is_complete = True
                return
            self._call, self._space = (f"{CALL_PREFIX}{call.id}", call.name or ""), ""
            self.num_calls += 1
            if call.name in self._eager_tools:
                self._begin_call()
        if call.arguments and self._open == "tool_use":
            self._add({"type": "input_json_delta", "partial_json": call.arguments})
        elif call.arguments:
            self._arguments.append(call.arguments)

    def _withdraw_call(self) -> None:
        if self._open == "tool_use":
            self._end_block()
        if self._call is not None:
            self.num_calls -= 1
        self._call = None
        self._arguments.clear()

    def _begin_call(self) -> None:
        assert self._call is not None
        call_id, name = self._call
        self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})

    def _end_call(self) -> None:
        """Send the call that is read, if there is one: it is complete."""
        if self._call is None:
            return
        if self._open != "tool_use":
            self._begin_call()
            self._add({"type": "input_json_delta", "partial_json": "".join(self._arguments)})
            self._arguments.clear()
        self._end_block()
        self._call = None

    def _begin(self, block: dict[str, Any]) -> None:
        self._end_block()
        self._index += 1
        self._open = block["type"]
        self._events.append({"type": "content_block_start", "index": self._index, "content_block": block})
        if not self._index:
            self._events.append(_PING)

    def _add(self, delta: dict[str, Any]) -> None:
        self._events.append({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _end_block(self) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            self._add({"type": "signature_delta", "signature": self._sign("".join(self._thought))})
        self._events.append({"type": "content_block_stop", "index": self._index})
        self._open = ""
