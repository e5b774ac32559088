"""``CallForms``: gives the tool calls of messages the form that a chat template reads.

Clients send the arguments of a call as JSON text. Most templates loop over them or print them as JSON, so they take an object; some
join them to other text, so they take text. Some templates take a missing content, others want ``None`` or an empty text. What a
template reads is found by rendering probes, once per template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hasten.core.answer import ToolCall
from hasten.core.errors import CheckpointError, InvalidRequest, show
from hasten.text.template_process import TemplateExceedsLimits

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]
MAX_ARGUMENTS = 1 << 20  # characters of the arguments of one call
_NAME, _KEY, _VALUE = "probe_name", "probe_key", "probe_value"
_ID = "call12345"
_FORM = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'


class _Form(NamedTuple):
    """How one template takes calls."""

    has_text: bool  # the arguments are JSON text
    content: Mapping[str, Any]  # of a message that has calls and no content


_FORMS = tuple(_Form(has_text, content) for has_text in (False, True) for content in ({}, {"content": None}, {"content": ""}))


class CallForms:
    """Which form of tool calls one template reads."""

    def __init__(self) -> None:
        self._form: _Form | None = None

    def normalize(self, messages: list[dict[str, Any]], source: str, render: Render) -> list[dict[str, Any]]:
        """Return the messages with calls that the template reads; ``source`` is its text.

        Raises ``InvalidRequest`` if it reads no calls, and if the template exceeds a limit.
        """
        if not any(message.get("tool_calls") for message in messages):
            return messages
        if "tool_calls" not in source:
            raise InvalidRequest(
                "this checkpoint's chat template takes no tool_calls",
                remedy="Leave the calls and their results out of the messages",
            )
        if self._form is None:
            self._form = _probe(render)
        form = self._form
        return [_in_form(message, form) if message.get("tool_calls") else message for message in messages]


def read_tool_calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of a message, with objects as arguments. Raises ``InvalidRequest``."""
    calls = message["tool_calls"]
    if not isinstance(calls, (list, tuple)):
        raise InvalidRequest("tool_calls are not a list", got=show(calls), allowed=f"a list of {_FORM}")
    return [_read_call(call) for call in calls]


def check_tool_results(messages: Sequence[Message]) -> None:
    """Raise ``InvalidRequest`` for a result whose ``tool_call_id`` is that of no call before it."""
    ids: set[object] = set()
    for message in messages:
        ids |= {call.get("id") for call in message.get("tool_calls") or ()}
        call_id = message.get("tool_call_id")
        if call_id is not None and ids and (not isinstance(call_id, str) or call_id not in ids):
            known = ", ".join(sorted(show(each) for each in ids if each is not None))
            raise InvalidRequest(
                "a result belongs to no tool call before it",
                got=f"tool_call_id={show(call_id)}",
                allowed=known or "calls with an id",
            )


def _read_call(call: object) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest("a tool call has the wrong form", got=show(call), allowed=_FORM)
    if not isinstance(call.get("id"), str | None) or call.get("type") not in (None, "function"):
        got = f"id={show(call.get('id'))}, type={show(call.get('type'))}"
        raise InvalidRequest("a tool call has an id that is no text, or a type other than function", got=got, allowed=_FORM)
    function = {**function, "arguments": _read_arguments(function.get("arguments"), function["name"])}
    return {**call, "function": function} if "function" in call else {**call, **function}


def _read_arguments(arguments: object, name: str) -> object:
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        if len(arguments) > MAX_ARGUMENTS:
            got = f"{len(arguments)} characters"
            raise InvalidRequest("the arguments of a tool call are too long", got=got, allowed=f"up to {MAX_ARGUMENTS}")
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"the arguments of the call of {show(name)} are not JSON", got=str(error), allowed="a JSON object, also as text"
            ) from error
    if not isinstance(arguments, Mapping):
        raise InvalidRequest(f"the arguments of the call of {show(name)} are no object", got=show(arguments))
    return arguments


def _in_form(message: Message, form: _Form) -> dict[str, Any]:
    content = {} if message.get("content") is not None else form.content
    calls = message["tool_calls"]
    return {**message, **content, "tool_calls": [_with_text(call) for call in calls] if form.has_text else calls}


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    text = {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "function": {**function, **text}} if "function" in call else {**call, **text}


def _probe(render: Render) -> _Form:
    """Return the first form whose call appears in the rendered text; the first of all if none does."""
    call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}
    for form in _FORMS:
        messages = [
            {"role": "user", "content": "a"},
            _in_form({"role": "assistant", "tool_calls": [call]}, form),
            {"role": "tool", "content": "b", "name": _NAME, "tool_call_id": _ID},
        ]
        try:
            text = render(messages)
        except TemplateExceedsLimits:  # says nothing about the template: the machine may be busy
            raise
        except (InvalidRequest, CheckpointError):
            continue
        is_quoted_twice = f'\\"{_KEY}' in text
        if all(word in text for word in (_NAME, _KEY, _VALUE)) and not is_quoted_twice and "None" not in text:
            return form
    return _FORMS[0]
