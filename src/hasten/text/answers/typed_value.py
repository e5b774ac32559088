"""Arguments that a model writes as plain text, turned into JSON by the tool's schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.core.tool_definition import ToolDefinition

_WORDS: dict[str, dict[str, bool | None]] = {
    "boolean": {"true": True, "false": False},
    "null": {"null": None, "none": None},
}
_MAX_TYPES = 32  # that are looked for in a schema
_MAX_NUMBER = 512  # characters


def argument_types(tool: ToolDefinition | None, name: str) -> tuple[str, ...]:
    """Return the JSON types that an argument may have, in the order of its schema."""
    return () if tool is None else schema_types(tool.properties.get(name), tool.parameters)


def schema_types(schema: object, root: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the JSON types that a schema inside ``root`` lists; empty if it lists none."""
    found: list[str] = []
    waiting: list[Any] = [schema]
    for _ in range(_MAX_TYPES):
        if not waiting:
            break
        schema = waiting.pop(0)
        if not isinstance(schema, Mapping):
            continue
        declared = schema.get("type")
        found += [declared] if isinstance(declared, str) else [each for each in declared or () if isinstance(each, str)]
        found += [_type_of(value) for value in [*_listed(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]]
        found += ["null"] if schema.get("nullable") is True else []
        for union in ("anyOf", "oneOf", "allOf"):
            waiting += _listed(schema.get(union))
        if isinstance(schema.get("$ref"), str):
            waiting.append(_referred(root, schema["$ref"]))
    return tuple(dict.fromkeys(found))


def is_text(types: Sequence[str]) -> bool:
    """Return whether an argument of these types is text, whatever stands there."""
    return not types or set(types) == {"string"}


def typed_json(text: str, types: Sequence[str]) -> str:
    """Return the JSON of an argument: of the first type that the text can be, else of the text itself."""
    plain = text.strip()
    for name in types:
        if name in _WORDS and plain.lower() in _WORDS[name]:
            return json.dumps(_WORDS[name][plain.lower()])
        if name in ("integer", "number") and (number := _number(plain, name)) is not None:
            return number
        if name in ("object", "array"):
            value = _parsed(plain)
            if isinstance(value, dict if name == "object" else list):
                return json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False)


def _number(text: str, name: str) -> str | None:
    if len(text) > _MAX_NUMBER:
        return None
    try:
        return str(int(text))
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if name == "integer":
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else None
    return json.dumps(number)


def _parsed(text: str) -> Any:
    """Return a JSON value, or a Python literal such as templates print; None if it is neither."""
    from hasten.text.answers.python_reader import literal_json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    written = literal_json(text)
    return None if written is None else json.loads(written)


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "integer", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value), "null")


def _listed(value: object) -> list[Any]:
    return list(value)[:_MAX_TYPES] if isinstance(value, (list, tuple)) else []


def _referred(root: Mapping[str, Any], reference: str) -> Any:
    """Return the schema of a reference inside the same schema."""
    value: Any = root
    for step in reference.removeprefix("#/").split("/"):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
