"""Schemas of bodies in the OpenAPI document have no references, which would count from the document's root."""

from __future__ import annotations

import jsonschema
import pytest
from pydantic import BaseModel, Field

from hasten.serving.openapi_body import event_stream, inline_schema, openapi_body


class Point(BaseModel):
    x: int


class Shape(BaseModel):
    points: list[Point] = Field(description="In order.")
    centre: Point | None = None
    size: int = 1
    name: str = Field(description="Mentions $ref: harmless.")


def test_a_schema_is_complete_without_its_document() -> None:
    schema = inline_schema(Shape)
    assert "$defs" not in schema
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"points": [{"x": 1}], "centre": None, "name": "a"})
    for wrong in ({"points": [{"x": "a"}], "name": "a"}, {"points": [], "centre": {}, "name": "a"}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)
    assert schema["properties"]["points"]["description"] == "In order."


def test_a_body_is_required_json() -> None:
    body = openapi_body(Shape)["requestBody"]
    assert body["required"]
    assert body["content"].keys() == {"application/json"}


def test_optional_fields_of_a_body_may_be_null() -> None:
    validator = jsonschema.Draft202012Validator(openapi_body(Shape)["requestBody"]["content"]["application/json"]["schema"])
    validator.validate({"points": [], "name": "a", "size": None, "centre": None})
    for wrong in ({"points": [], "name": None}, {"points": [{"x": None}], "name": "a"}, {"points": [], "name": "a", "size": "b"}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)


def test_a_stream_is_described_by_its_events() -> None:
    event = event_stream(Point)["text/event-stream"]["schema"]
    jsonschema.validate({"data": "[DONE]"}, event)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"event": "ping"}, event)
    assert event["properties"]["data"]["contentSchema"] == {"anyOf": [inline_schema(Point)]}
