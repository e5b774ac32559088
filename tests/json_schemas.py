"""JSON schemas of the features that structured output takes, and instances of them, valid and invalid; all seeded."""

from __future__ import annotations

import datetime
import json
import random
import re
import string
from typing import Any

import jsonschema

LETTERS = "abcxyz_é你😀"
FORMATS = {  # format -> an instance, and a pattern that every instance matches as a whole
    "date": ("2024-02-28", r"\d{4}-\d\d-\d\d"),
    "time": ("23:59:01Z", r"\d\d:\d\d:\d\d.*"),
    "date-time": ("2024-02-28T23:59:01Z", r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d.*"),
    "ipv4": ("10.0.0.1", r"(\d{1,3}\.){3}\d{1,3}"),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000", r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    "email": ("a.b@example.org", r"[^@\s]+@[^@\s]+|\".*\"@.*"),
}
PATTERNS = {  # pattern -> instances
    "^[a-c]{2,5}$": ["ab", "abcab"],
    "^(yes|no|maybe)$": ["yes", "maybe"],
    r"^\d{3}-\d{4}$": ["555-0123"],
    "^[A-Z][a-z]*( [A-Z][a-z]*)?$": ["Ada", "Ada Lovelace"],
    "^[^\\s]{1,6}$": ["a,b", "你好"],
}
RECURSIVE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 99},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
TREE = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "b"]}, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    "required": ["name"],
    "additionalProperties": False,
}
WRITTEN: list[tuple[Any, list[Any]]] = [  # schemas, each with instances
    (RECURSIVE, [{"value": 1, "next": {"value": 22, "next": None}}]),
    (TREE, [{"name": "a", "children": [{"name": "b"}, {"name": "a", "children": []}]}]),
    ({"allOf": [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
    ], "maxProperties": 2}, []),
    ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]}, [3, 9]),
    ({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "maxLength": 4}, {"type": "null"}]}, [7, "abc", None]),
    ({"oneOf": [
        {"type": "object", "properties": {"k": {"const": "x"}, "v": {"type": "integer"}}, "required": ["k", "v"],
         "additionalProperties": False},
        {"type": "object", "properties": {"k": {"const": "y"}, "w": {"type": "boolean"}}, "required": ["k"],
         "additionalProperties": False},
    ]}, [{"k": "x", "v": 1}, {"k": "y"}, {"k": "y", "w": True}]),
    ({"anyOf": [{"type": "string", "pattern": "^a+$"}, {"type": "array", "items": {"const": 1}, "maxItems": 3}]}, ["aa", [1, 1]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"enum": ["a", "b"]}], "items": False, "minItems": 2}, [[5, "a"]]),
    ({"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "null"}, "maxItems": 3}, [[True, None], []]),
    ({"type": "object", "patternProperties": {"^n_[a-z]$": {"type": "integer"}}, "additionalProperties": False}, [{"n_a": 1}, {}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"enum": ["x", None]}},
     [{"a": 1}, {"b": "x"}]),
    ({"type": ["integer", "boolean", "null"]}, [1, True, None]),
    ({"const": {"a": [1, "x", None, 1.5, {"é": "\n"}]}}, [{"a": [1, "x", None, 1.5, {"é": "\n"}]}]),
    ({"enum": ["你好", "a\"b\\c", 3, -1.5, True, [], {}]}, ["你好", "a\"b\\c", 3, -1.5, True, [], {}]),
    ({"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 30}, [0, 3, 30]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, 0.25]),
    ({"type": "number", "multipleOf": 0.5}, [1.5, 2]),
    ({"type": "integer", "exclusiveMinimum": -5, "maximum": 17}, [-4, 17]),
    ({"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "你好吗!", "😀😀"]),
    ({"definitions": {"s": {"type": "string", "maxLength": 3}}, "type": "array", "maxItems": 2,
      "items": {"$ref": "#/definitions/s"}}, [["a", "b"]]),
    ({"title": "Settings", "description": "…", "type": "object", "properties": {"on": {"type": "boolean", "default": True}},
      "required": ["on"], "additionalProperties": False, "examples": [{"on": True}]}, [{"on": False}]),
    ({"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 2},
      "maxItems": 2}, "maxItems": 2}, [[[[0, 1]], []]]),
    ({"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}, "required": ["a", "b"],
      "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 5}, "maxProperties": 2}, []),
    *(({"type": "string", "format": name}, [value]) for name, (value, _) in FORMATS.items()),
    *(({"type": "string", "pattern": pattern}, values) for pattern, values in PATTERNS.items()),
]  # fmt: skip


def random_schema(draw: random.Random, depth: int = 3) -> Any:
    """Return a schema whose instances are mostly short."""
    if depth > 1 and draw.random() < 0.12:
        return {"anyOf": [random_schema(draw, depth - 2) for _ in range(draw.randint(2, 3))]}
    kinds = ["string", "integer", "number", "enum", "pattern", "format", "boolean", "null"]
    kind = draw.choice(["object", "object", "array"] if depth == 3 else kinds + ["object", "array"] * (depth > 0))
    if kind == "object":
        return _object(draw, depth)
    if kind == "array":
        low = draw.randint(0, 2)
        return {"type": "array", "items": random_schema(draw, depth - 1), "minItems": low, "maxItems": low + draw.randint(0, 2)}
    if kind == "string":
        low = draw.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + draw.randint(0, 8)}
    if kind == "integer":
        low = draw.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + draw.choice((0, 9, 5000))}
    if kind == "number":
        low = draw.randint(-20, 20)
        return {"type": "number", "minimum": low, "maximum": low + draw.choice((1, 2.5, 300))}
    if kind == "enum":
        values = ["red", "green", "你好", "a b", '"', "\\", 0, -7, 2.5, True, None, [], [1, "x"], {"k": 1}]
        return {"enum": draw.sample(values, draw.randint(1, 4))}
    if kind == "pattern":
        return {"type": "string", "pattern": draw.choice(list(PATTERNS))}
    return {"type": "string", "format": draw.choice(list(FORMATS))} if kind == "format" else {"type": kind}


def _object(draw: random.Random, depth: int) -> Any:
    names = draw.sample(["name", "age", "tags", "地址", "is ok", 'q"q', "a", "b"], draw.randint(1, 3))
    schema: dict[str, Any] = {"type": "object", "properties": {name: random_schema(draw, depth - 1) for name in names}}
    schema["required"] = [name for name in names if draw.random() < 0.7]
    schema["additionalProperties"] = draw.choice((False, False, False, {"type": "integer", "minimum": 0, "maximum": 9}))
    return schema


def make_schema(number: int) -> Any:
    """Return the schema of a number: the written ones first, then random ones."""
    return WRITTEN[number][0] if number < len(WRITTEN) else random_schema(random.Random(f"schema {number}"))


def make_instance(number: int, draw: random.Random) -> Any:
    """Return a valid instance of the schema of a number, its properties in the schema's order; None if there is none to draw."""
    if number < len(WRITTEN):
        return draw.choice(WRITTEN[number][1] or [None])
    return _instance(make_schema(number), draw)


def _instance(schema: Any, draw: random.Random) -> Any:
    if "anyOf" in schema:
        return _instance(draw.choice(schema["anyOf"]), draw)
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if "pattern" in schema:
        return draw.choice(PATTERNS[schema["pattern"]])
    if "format" in schema:
        return FORMATS[schema["format"]][0]
    kind = schema["type"]
    if kind == "object":
        required = schema["required"]
        chosen = {
            name: _instance(part, draw) for name, part in schema["properties"].items() if name in required or draw.random() < 0.5
        }
        more = {f"z{i}": draw.randint(0, 9) for i in range(draw.randint(0, 2))} if schema["additionalProperties"] else {}
        return chosen | more
    if kind == "array":
        return [_instance(schema["items"], draw) for _ in range(draw.randint(schema["minItems"], schema["maxItems"]))]
    if kind == "string":
        return "".join(draw.choice(LETTERS + ' "\\\n') for _ in range(draw.randint(schema["minLength"], schema["maxLength"])))
    if kind == "integer":
        return draw.randint(schema["minimum"], schema["maximum"])
    if kind == "number":
        return schema["minimum"] + draw.choice((0, 0.25, 0.5, 1))
    return None if kind == "null" else draw.random() < 0.5


def mutate(value: Any, draw: random.Random) -> Any:
    """Return another value: a part of it is replaced, added or left out."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        changed, key = dict(value), draw.choice(list(value))
        how = draw.choice(("drop", "change", "change", "add"))
        if how == "drop":
            del changed[key]
        elif how == "change":
            changed[key] = mutate(value[key], draw)
        else:
            changed[draw.choice(("extra", "A", ""))] = draw.choice((1, "x", None))
        return changed
    if isinstance(value, list) and value and draw.random() < 0.8:
        index, copy = draw.randrange(len(value)), list(value)
        how = draw.choice(("drop", "change", "add"))
        copy[index : index + 1] = {"drop": [], "change": [mutate(value[index], draw)], "add": [value[index]] * 6}[how]
        return copy
    if isinstance(value, str) and draw.random() < 0.7:
        return value + draw.choice(string.ascii_letters + "é ") * draw.choice((1, 20))
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.7:
        return value + draw.choice((-7000, 7000, 0.125))
    return draw.choice([None, True, 3, -0.5, "other", [], {}, [[1]], {"a": {"b": 1}}])


def write(value: Any, draw: random.Random) -> str:
    """Return the JSON of a value in one of the layouts that structured output takes."""
    layouts: list[dict[str, Any]] = [{}, {"separators": (",", ":")}, {"indent": 2}, {"indent": "\t"}, {"indent": 0}]
    return json.dumps(value, ensure_ascii=False, **draw.choice(layouts))


def is_valid(schema: Any, value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema, format_checker=CHECKER).is_valid(value))


CHECKER = jsonschema.FormatChecker(formats=())
for _name, (_, _pattern) in FORMATS.items():
    CHECKER.checks(_name)(lambda value, pattern=_pattern: not isinstance(value, str) or re.fullmatch(pattern, value) is not None)
assert datetime.date.fromisoformat(FORMATS["date"][0])
