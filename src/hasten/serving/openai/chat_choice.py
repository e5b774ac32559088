"""One choice of a chat completion, complete or in deltas."""

from __future__ import annotations

from typing import Any

from hasten.core.answer import ToolCallDelta
from hasten.core.output import CompletionOutput, Delta
from hasten.serving.openai.chat_request import ChatRequest
from hasten.serving.openai.finish import finish_reason
from hasten.serving.openai.logprobs import chat_logprobs
from hasten.serving.openai.token_strings import TokenStrings


def complete_choice(completion: CompletionOutput, body: ChatRequest, strings: TokenStrings) -> dict[str, Any]:
    """Return a choice. ``content`` is null if the answer has tool calls and no text."""
    max_calls = _max_calls(body)
    calls = completion.tool_calls[:max_calls]
    message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    if calls:
        message["content"] = completion.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls
        ]
    if body.include_reasoning and completion.reasoning is not None:
        message["reasoning"] = completion.reasoning
    found = {
        "index": completion.index,
        "message": message,
        "logprobs": None if completion.logprobs is None or not body.logprobs else chat_logprobs(completion.logprobs, strings),
        "finish_reason": finish_reason(completion.finish_reason, num_calls=len(calls), max_calls=max_calls),
        "stop_reason": completion.stop_reason,
    }
    return found | {"token_ids": list(completion.token_ids)} if body.return_token_ids else found


class ChoiceStream:
    """Writes the deltas of one choice. The first one says the role.

    Fragments of a call that turns out to be malformed cannot be taken back: its text follows as content, the next call gets an
    index of its own, and it does not count for ``finish_reason``.
    """

    def __init__(self, index: int, body: ChatRequest, strings: TokenStrings) -> None:
        self._index, self._strings = index, strings
        self._has_reasoning, self._has_ids, self._has_logprobs = body.include_reasoning, body.return_token_ids, body.logprobs
        self._max_calls = _max_calls(body)
        self._is_first = True
        self._calls: set[int] = set()  # the engine's indices of the calls so far
        self._num_withdrawn = 0

    def read(self, delta: Delta) -> dict[str, Any] | None:
        """Return the choice of a chunk; None if the delta adds nothing that was asked for."""
        added: dict[str, Any] = {}
        if delta.text:
            added["content"] = delta.text
        if delta.reasoning and self._has_reasoning:
            added["reasoning"] = delta.reasoning
        if delta.tool_calls and (calls := self._read_calls(delta.tool_calls)):
            added["tool_calls"] = calls
        if self._is_first:
            added = {"role": "assistant", **(added or {"content": ""})}
            self._is_first = False
        has_logprobs = self._has_logprobs and bool(delta.logprobs)
        if not added and delta.finish_reason is None and not self._has_ids and not has_logprobs:
            return None
        choice: dict[str, Any] = {"index": self._index, "delta": added}
        choice["logprobs"] = chat_logprobs(delta.logprobs or (), self._strings) if has_logprobs else None
        choice["finish_reason"] = finish_reason(delta.finish_reason, num_calls=len(self._calls), max_calls=self._max_calls)
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._has_ids:
            choice["token_ids"] = list(delta.token_ids)
        return choice

    def _read_calls(self, deltas: tuple[ToolCallDelta, ...]) -> list[dict[str, Any]]:
        found = []
        for delta in deltas:
            if delta.is_withdrawn:
                self._num_withdrawn += delta.index in self._calls
                self._calls.discard(delta.index)
                continue
            self._calls.add(delta.index)
            if self._max_calls is not None and delta.index >= self._max_calls:
                continue
            call: dict[str, Any] = {"index": delta.index + self._num_withdrawn}
            function: dict[str, Any] = {"arguments": delta.arguments}
            if delta.id is not None:
                call |= {"id": delta.id, "type": "function"}
                function = {"name": delta.name, **function}
            found.append({**call, "function": function})
        return found


def _max_calls(body: ChatRequest) -> int | None:
    return None if body.parallel_tool_calls else 1
