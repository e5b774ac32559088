"""The HTTP reference as Markdown, generated from the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

INTRO = """\
# HTTP API

Generated from the server's OpenAPI document by `make docs`; do not edit. A running server sends the document itself at
`/openapi.json`. [How to serve models](../how-to/serve.md) has examples.

A field that is not listed is refused with status 400. A field that is null counts as absent. Streams are server-sent events.
"""
TITLES = {"openai": "OpenAI", "anthropic": "Anthropic", "tgi": "Text Generation Inference", "hasten": "hasten"}
METHODS = ("get", "post", "put", "patch", "delete")
MAX_NESTING = 2  # objects in objects that have rows of their own
_HEADER = ("| field | type | default | |", "| --- | --- | --- | --- |")
_PLURALS = {"string": "strings", "integer": "integers", "number": "numbers", "object": "objects", "list": "lists"}
_TO_COMPARE = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def http_reference(
    document: Mapping[str, Any],
    *,
    harmless: Mapping[str, Collection[str]],
    refused: Mapping[str, Mapping[str, str]],
    descriptions: Mapping[str, str],
) -> str:
    """Return the page.

    ``harmless``, ``refused``: by the tag of a surface, the fields that change nothing, and those that it refuses with reasons.
    ``descriptions``: of fields whose schema has none.
    """
    routes: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, operations in document["paths"].items():
        for method in (each for each in METHODS if each in operations):
            operation = operations[method]
            routes.setdefault((operation.get("tags") or ["hasten"])[0].lower(), []).append((method, path, operation))
    lines = [INTRO]
    for tag in sorted(routes, key=lambda tag: (list(TITLES).index(tag) if tag in TITLES else len(TITLES), tag)):
        lines.append(f"## {TITLES.get(tag, tag)}\n")
        unused: dict[str, str] = {}  # the rows of harmless fields
        for method, path, operation in routes[tag]:
            rows = _rows(operation, document, descriptions)
            unused |= {name: row for name, row in rows.items() if name.split(".")[0] in harmless.get(tag, ())}
            lines += _route(method, path, operation, [row for name, row in rows.items() if name not in unused])
        if unused:
            lines += ["### Fields without an effect\n", "Clients send them, and no output depends on them.\n"]
            lines += [*_HEADER, *unused.values(), ""]
        if tag in refused:
            lines += ["### Refused fields\n", "Each could alter the output.\n", "| field | why |", "| --- | --- |"]
            lines += [*(f"| `{name}` | {_cell(why)} |" for name, why in sorted(refused[tag].items())), ""]
    return "\n".join(lines)


def _rows(operation: Mapping[str, Any], document: Mapping[str, Any], descriptions: Mapping[str, str]) -> dict[str, str]:
    """Return the table rows of a route's parameters and body, by the field's name."""
    parameters = [each for each in operation.get("parameters", ()) if each["in"] != "header"]
    found = [(each["name"], each["schema"], each) for each in parameters]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is not None:
        found += _fields(_resolved(content["schema"], document), document)
    return {name: _row(name, schema, about, document, descriptions.get(name, "")) for name, schema, about in found}


def _route(method: str, path: str, operation: Mapping[str, Any], rows: Collection[str]) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`\n"
    if text := operation.get("description") or operation.get("summary"):
        yield f"{_cell(text)}\n"
    if rows:
        yield from (*_HEADER, *rows, "")


def _fields(
    schema: Mapping[str, Any], document: Mapping[str, Any], prefix: str = "", nesting: int = 0
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the name, the schema and the description of each field, and those of the objects in it."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        resolved = _resolved(field, document)
        yield prefix + name, resolved, {"required": name in required, **resolved}
        for inner in _objects(resolved, document):
            if nesting < MAX_NESTING:
                yield from _fields(inner, document, f"{prefix}{name}.", nesting + 1)


def _row(name: str, schema: Mapping[str, Any], about: Mapping[str, Any], document: Mapping[str, Any], description: str) -> str:
    default = schema.get("default")
    written = "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"
    shown = "required" if about.get("required") else written
    return f"| `{name}` | {_cell(type_of(schema, document))} | {shown} | {_cell(about.get('description', description))} |"


def type_of(schema: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Return what a JSON schema allows, in a few words; null is left out."""
    schema = _resolved(schema, document)
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema["enum"] if each is not None)
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [type_of(each, document) for each in schema.get("anyOf") or schema["oneOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    kind = schema.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(type_of({**schema, "type": each}, document) for each in kind if each != "null")
    if kind == "array":
        items = schema.get("items")
        first, *rest = type_of(items, document).split(" ", 1) if items else [""]
        return " ".join(["list of", _PLURALS.get(first, first), *rest]) if items else "list"
    return " ".join([str(kind), *(f"{sign} {schema[key]:.12g}" for key, sign in _TO_COMPARE if key in schema)])


def _objects(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the object with named fields that a field holds, alone or in a list.

    Nothing if it holds several kinds.
    """
    if "properties" in schema:
        return [schema]
    if "items" in schema:
        return _objects(_resolved(schema["items"], document), document)
    options = [_resolved(each, document) for each in schema.get("anyOf", ())]
    found = [inner for each in options for inner in _objects(each, document)]
    return found if len(found) == 1 else []


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that a reference stands for, with the other keys beside the reference."""
    if "$ref" not in schema:
        return schema
    found: Any = document
    for part in str(schema["$ref"]).removeprefix("#/").split("/"):
        found = found[part]
    return {**found, **{key: value for key, value in schema.items() if key != "$ref"}}


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).replace("|", "\\|").strip()
