"""Bodies and streams in the OpenAPI document, of routes that read and write them by themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def openapi_body(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the ``openapi_extra`` of a route whose body has this schema.

    Optional fields may be null, which counts as absent.
    """
    found = with_null_fields(inline_schema(schema))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": found}}}}


def with_null_fields(found: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object whose optional fields may be null."""
    required = found.get("required", ())
    return found | {
        "properties": {name: each if name in required else _or_null(each) for name, each in found["properties"].items()}
    }


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that may be null, too."""
    if {"type": "null"} in field.get("anyOf", ()):
        return field
    notes: dict[str, Any] = {name: field[name] for name in ("title", "description", "default") if name in field}
    return {"anyOf": [{name: value for name, value in field.items() if name not in notes}, {"type": "null"}], **notes}


def event_stream(*data: type[BaseModel]) -> dict[str, Any]:
    """Return the ``content`` of an answer that is a stream of server-sent events.

    The schema is that of one event. ``data``: what an event has, as JSON; none: any text.
    """
    text: dict[str, Any] = {"type": "string"}
    if data:
        text |= {"contentMediaType": "application/json", "contentSchema": {"anyOf": list(map(inline_schema, data))}}
    return {"text/event-stream": {"schema": {"type": "object", "properties": {"data": text}, "required": ["data"]}}}


def inline_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema without references, which would count from the document's root.

    It must not refer to itself.
    """
    found = schema.model_json_schema()
    definitions = found.pop("$defs", {})
    inlined: dict[str, Any] = _without_references(found, definitions)
    return inlined


def _without_references(node: Any, definitions: dict[str, Any]) -> Any:
    """Return the schema with each reference replaced by what it refers to."""
    if isinstance(node, list):
        return [_without_references(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = str(node["$ref"]).removeprefix("#/$defs/")
        others = {key: value for key, value in node.items() if key != "$ref"}
        return _without_references({**definitions[name], **others}, definitions)
    # A discriminator maps to references; the constants of its field in the alternatives say the same.
    return {key: _without_references(value, definitions) for key, value in node.items() if key != "discriminator"}
