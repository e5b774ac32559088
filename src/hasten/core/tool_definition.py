"""``ToolDefinition``: a tool as a request defines it, in OpenAI's form, and its checks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import InvalidRequest, show
from hasten.core.nesting import is_nested_deeper
from hasten.core.structured_outputs import MAX_DEPTH, MAX_SOURCE

MAX_TOOLS = 256
FORM = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON schema}}'
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NO_PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    name: str
    description: str
    parameters: Mapping[str, Any]  # the JSON schema of the arguments, an object

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of the arguments by name."""
        properties: Mapping[str, Any] = self.parameters.get("properties", {})
        return properties


def read_tool_definitions(tools: object) -> tuple[ToolDefinition, ...]:
    """Return the definitions of a list of tools.

    Raises ``InvalidRequest``, and names the tool that is wrong.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InvalidRequest("tools are not a list", got=type(tools).__name__, allowed=f"a list of {FORM}")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest("there are too many tools", got=len(tools), allowed=f"up to {MAX_TOOLS}")
    found: dict[str, ToolDefinition] = {}
    for number, tool in enumerate(tools):
        definition = _read(tool, number)
        if definition.name in found:
            raise InvalidRequest("two tools have the same name", got=definition.name, remedy="Rename one of them")
        found[definition.name] = definition
    return tuple(found.values())


def _read(tool: object, number: int) -> ToolDefinition:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"tools[{number}] is not a definition of a function", got=show(tool), allowed=FORM)
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "1 to 64 letters, digits, dots, hyphens and underscores"
        raise InvalidRequest(f"tools[{number}] has no proper name", got=show(name), allowed=allowed)
    if not isinstance(description, (str, type(None))):
        raise InvalidRequest(f"the description of tool {name} is not text", got=show(description))
    if not isinstance(strict := function.get("strict"), (bool, type(None))):
        raise InvalidRequest(f"strict of tool {name} is neither true nor false", got=show(strict))
    parameters = function.get("parameters")
    if parameters is None:
        return ToolDefinition(name, description or "", _NO_PARAMETERS)
    _check_schema(parameters, name)
    return ToolDefinition(name, description or "", parameters)


def _check_schema(schema: object, name: str) -> None:
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        allowed = 'a JSON schema of type "object"'
        raise InvalidRequest(f"the parameters of tool {name} are no schema of an object", got=show(schema), allowed=allowed)
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping) or not all(isinstance(each, (Mapping, bool)) for each in properties.values()):
        allowed = "a mapping from names to JSON schemas"
        raise InvalidRequest(f"the properties of tool {name} are no schemas", got=show(properties), allowed=allowed)
    required = schema.get("required", [])
    if not isinstance(required, (list, tuple)) or not all(isinstance(each, str) for each in required):
        raise InvalidRequest(f"the required arguments of tool {name} are no list of names", got=show(required))
    if is_nested_deeper(schema, MAX_DEPTH):
        raise InvalidRequest(f"the schema of tool {name} is nested too deeply", allowed=f"up to {MAX_DEPTH} levels")
    try:
        length = len(json.dumps(schema, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the schema of tool {name} is not JSON", got=str(error)) from error
    if length > MAX_SOURCE:
        allowed = f"up to {MAX_SOURCE} characters"
        raise InvalidRequest(f"the schema of tool {name} is too large", got=f"{length} characters", allowed=allowed)
