"""Every field of every body in the OpenAPI document with every kind of bad value: no error of the server, and no harm to others."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from tests.exhaustive import repeats
from tests.serving.repairs import PLAIN
from tests.serving.watched_server import WatchedServer, check_error_form

SEED = 7
NUM_FIELDS = repeats("poisoned fields")
POISONS: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "31 bits": 2**31,
    "64 bits": 2**64,
    "fraction": 1.5,
    "largest": -1e308,
    "least": 5e-324,
    "empty text": "",
    "NUL": "\0",
    "long text": "a" * 70_000,
    "last character": "\U0010ffff",
    "path": "../../etc/passwd",
    "special": "<|im_end|>",
    "template": "{{ ''.__class__ }}",
    "digits": "9" * 5000,
    "empty list": [],
    "lists": [[]],
    "nulls": [None] * 3,
    "long list": [1] * 5000,
    "texts": ["a"] * 5000,
    "empty object": {},
    "object": {"": None},
    "objects": {"a": {"a": [{}]}},
    "reference": {"$ref": "#"},
    "wide object": {str(i): i for i in range(3000)},
}
Schema = Mapping[str, Any]
Put = Callable[[Any], Any]


class Field(NamedTuple):
    route: str
    place: str  # such as "messages.0.role"
    put: Put  # from a value of the field to a body


def test_every_field_with_every_poison(watched: WatchedServer) -> None:
    document = watched.client.get("/openapi.json").json()
    fields = list(all_fields(document))
    assert len(fields) > 400
    chosen = random.Random(SEED).sample(fields, min(len(fields), NUM_FIELDS))
    statuses: Counter[int] = Counter()
    for route, place, put in chosen:
        with watched.unharmed(f"{route} {place}"):
            for name, poison in POISONS.items():
                body = json.dumps(put(poison)).encode()
                answer = watched.client.post(route, content=body, headers={"content-type": "application/json"})
                what = f"{route} with {name} as {place}: {answer.text[:500]}"
                assert answer.status_code < 500, what
                statuses[answer.status_code] += 1
                if answer.status_code != 200:
                    check_error_form(route, answer.json())
                    assert len(answer.content) < 4096, what
    assert statuses[200] > 0.02 * statuses.total()
    assert statuses[400] + statuses[422] > 0.5 * statuses.total()


def all_fields(document: Mapping[str, Any]) -> Iterator[Field]:
    """Yield the fields of all bodies, also those of objects within others."""
    for route, operations in document["paths"].items():
        if "requestBody" in operations.get("post", {}):
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            yield from (Field(route, place, put) for place, put in places(schema))


def places(schema: Schema) -> Iterator[tuple[str, Put]]:
    """Yield the path of each field, and what makes a value with another value there, and else as little as it must have."""
    for each in alternatives(schema):
        for name, field in each.get("properties", {}).items():
            yield from _with_inner(name, field, lambda value, each=each, name=name: {**sample(each), name: value})
        if isinstance(each.get("items"), Mapping):
            yield from _with_inner("0", each["items"], lambda value: [value])


def _with_inner(name: str, schema: Schema, put: Put) -> Iterator[tuple[str, Put]]:
    yield name, put
    for place, inner in places(schema):
        yield f"{name}.{place}", lambda value, inner=inner: put(inner(value))


def alternatives(schema: Schema) -> list[Schema]:
    found = [inner for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ())) for inner in alternatives(each)]
    return [schema, *found]


def sample(schema: Schema) -> Any:
    """Return a small value of a schema."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return sample(options[0])
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: PLAIN.get(name) or sample(properties.get(name, {})) for name in schema.get("required", ())}
    if kind == "array":
        return [sample(schema.get("items", {}))] * schema.get("minItems", 0)
    return {"string": "a", "integer": schema.get("minimum", 1), "number": 1, "boolean": False, "null": None}[kind]
