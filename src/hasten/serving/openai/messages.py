"""``read_messages``: the checked messages of a chat completion, as chat templates read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.core.errors import show
from hasten.serving.api_error import ApiError, invalid

ROLES = ("system", "developer", "user", "assistant", "tool")
# Fields that clients send back with an answer, and hints on caching; no template reads them.
_DROPPED = frozenset({"annotations", "prompt_cache_breakpoint", "cache_control"})
_REFUSED = {"audio": "the models are text models", "function_call": "it was replaced by tool_calls; use those"}
_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CALL_SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"]},
        "type": {"enum": ["function", None]},
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "arguments": {"type": ["string", "object", "null"], "description": "A JSON object, also as text."},
            },
            "required": ["name"],
        },
    },
    "required": ["function"],
}


def _has(name: str, **more: int) -> dict[str, Any]:
    """Return a schema of objects that have a field which is not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}, **more}}}


MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA, "minItems": 1}, {"type": "null"}]},
            "reasoning": {"type": ["string", "null"]},
            "reasoning_content": {"type": ["string", "null"]},
            "tool_calls": {"anyOf": [{"type": "array", "items": _CALL_SCHEMA}, {"type": "null"}]},
            "tool_call_id": {"type": ["string", "null"]},
            "name": {"type": ["string", "null"]},
        },
        "required": ["role"],
        "if": {"properties": {"role": {"const": "assistant"}}},
        "then": {"anyOf": [_has("content"), _has("tool_calls", minItems=1), _has("reasoning"), _has("reasoning_content")]},
        "else": {**_has("content"), "not": _has("tool_calls", minItems=1)},
    },
}


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """Return the messages without null fields. Raises ``ApiError`` that names the message."""
    if not isinstance(messages, list) or not messages:
        raise invalid('messages are not a list of {"role": ..., "content": ...}, with one or more', param="messages")
    return [_read(message, f"messages.{number}") for number, message in enumerate(messages)]


def with_known_roles(messages: list[dict[str, Any]], template: str | None) -> list[dict[str, Any]]:
    """Return the messages, with ``system`` for ``developer`` where the chat template knows no such role."""
    if template is not None and "developer" in template:
        return messages
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]


def _read(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise invalid(f"{place} is not an object", param=place)
    found = {name: value for name, value in message.items() if value is not None and name not in _DROPPED}
    role = found.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{place}.role is {show(role)}; allowed: {', '.join(ROLES)}", param=f"{place}.role")
    for name, why in _REFUSED.items():
        if name in found:
            raise invalid(f"{place}.{name} is not supported: {why}", param=f"{place}.{name}")
    if found.get("refusal") is not None:
        found.setdefault("content", found.pop("refusal"))
    for name in ("reasoning", "reasoning_content", "name", "tool_call_id"):
        if name in found and not isinstance(found[name], str):
            raise invalid(f"{place}.{name} is not text", param=f"{place}.{name}")
    if not found.get("tool_calls"):
        found.pop("tool_calls", None)
    elif role != "assistant":
        raise invalid(f"{place}.tool_calls belong to a message of the assistant", param=f"{place}.tool_calls")
    if "content" in found:
        found["content"] = _read_content(found["content"], f"{place}.content")
    elif role != "assistant" or not found.keys() & {"tool_calls", "reasoning", "reasoning_content"}:
        raise invalid(f"{place} has no content", param=f"{place}.content")
    return found


def _read_content(content: Any, place: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise invalid(f"{place} is neither text nor a list of text parts", param=place)
    return [_read_part(part, f"{place}.{number}") for number, part in enumerate(content)]


def _read_part(part: Any, place: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    raise _no_text(kind, place)


def _no_text(kind: Any, place: str) -> ApiError:
    if kind == "text":
        return invalid(f"{place} has no text", param=place)
    return invalid(f'{place} is a part of type {show(kind)}; allowed: {{"type": "text", "text": ...}}', param=place)
