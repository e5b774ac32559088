"""``read_tools``: the tools of a chat completion, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import InvalidRequest, show
from hasten.core.tool_definition import read_tool_definitions
from hasten.serving.api_error import invalid

_NAMED = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
_ALLOWED_TOOLS = {
    "type": "object",
    "properties": {
        "type": {"const": "allowed_tools"},
        "allowed_tools": {
            "type": "object",
            "properties": {"mode": {"enum": ["auto", "required"]}, "tools": {"type": "array", "items": _NAMED, "minItems": 1}},
            "required": ["mode", "tools"],
        },
    },
    "required": ["type", "allowed_tools"],
}
CHOICE_SCHEMA = {"anyOf": [{"enum": ["none", "auto", "required"]}, _NAMED, _ALLOWED_TOOLS]}
TOOLS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
                    "description": {"type": ["string", "null"]},
                    "parameters": {"type": ["object", "null"]},
                    "strict": {"type": ["boolean", "null"], "description": "true: calls keep to the schemas of all tools."},
                },
                "required": ["name"],
            },
        },
        "required": ["type", "function"],
    },
}
_ALLOWED = (
    'none, auto, required, {"type": "function", "function": {"name": ...}} or '
    '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}'
)


@dataclass(frozen=True, slots=True)
class Tools:
    """``definitions`` None: no tools. ``choice``: as the engine takes it."""

    definitions: list[Any] | None = None
    choice: str | dict[str, Any] = "auto"

    @property
    def needs_grammar(self) -> bool:
        """Whether a ``strict`` tool binds answers that need not call it.

        A demanded call has a grammar of its own.
        """
        return self.choice == "auto" and any(tool["function"].get("strict") for tool in self.definitions or ())


def read_tools(definitions: Any, choice: Any) -> Tools:
    """Return the tools. ``choice`` None: auto. Raises ``ApiError`` that names the field at fault."""
    if definitions is None or definitions == []:
        if choice not in (None, "none"):
            raise invalid("tool_choice needs tools", param="tool_choice")
        return Tools()
    try:
        names = [tool.name for tool in read_tool_definitions(definitions)]
    except InvalidRequest as error:
        raise invalid(str(error), param="tools") from None
    if choice is None or choice in ("none", "auto", "required"):
        return Tools(definitions, choice or "auto")
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        return Tools(definitions, _named(_name(choice, names)))
    if kind == "allowed_tools":
        return _allowed(definitions, choice.get("allowed_tools"), names)
    raise invalid(f"tool_choice has an unknown value: {show(choice)}; allowed: {_ALLOWED}", param="tool_choice")


def _allowed(definitions: list[Any], allowed: Any, names: list[str]) -> Tools:
    """Return the tools that ``allowed_tools`` names; the others are not shown to the model."""
    mode, chosen = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, Mapping) else (None, None)
    if mode not in ("auto", "required") or not isinstance(chosen, list) or not chosen:
        raise invalid(f"tool_choice has allowed_tools of an unknown form; allowed: {_ALLOWED}", param="tool_choice")
    kept = {_name(each, names) for each in chosen}
    return Tools([tool for tool, name in zip(definitions, names, strict=True) if name in kept], mode)


def _name(choice: Any, names: list[str]) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or name not in names:
        message = f"tool_choice names {show(name)}, which is none of the tools; allowed: {', '.join(names)}"
        raise invalid(message, param="tool_choice")
    return name


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}
