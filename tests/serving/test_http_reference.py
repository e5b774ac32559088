"""The generated HTTP reference, from a document that FastAPI writes and from one written here."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field

from hasten.serving.http_reference import http_reference, type_of


class Tool(BaseModel):
    name: str
    strict: bool = False


class Body(BaseModel):
    """What a client sends."""

    prompt: str | list[str] = Field(description="A text | or several.")
    n: Annotated[int, Field(ge=1, le=8)] = 1
    order: Literal["a", "b"] = "a"
    tools: list[Tool] | None = None
    user: str | None = Field(None, description="Ignored.")
    top_k: int | None = None


def reference() -> str:
    refused = {"openai": {"suffix": "not there", "audio": "a | b"}}
    return http_reference(document(), harmless={"openai": {"user"}}, refused=refused, descriptions={"top_k": "Most likely tokens."})


def document() -> dict:
    app, router = FastAPI(), APIRouter(tags=["openai"])

    @router.post("/v1/things")
    def make(body: Body, dry: bool = False) -> None:
        """Make ``n`` things.

        At once.
        """

    @router.get("/v1/things/{name}")
    def look(name: str) -> None:
        """Return one."""

    app.include_router(router)

    @app.get("/health")
    def health() -> None:
        """Whether it runs."""

    return app.openapi()


def test_a_route_has_its_fields_with_types_and_defaults():
    page = reference()
    lines = page.splitlines()
    start = lines.index("### `POST /v1/things`")
    assert lines[start + 2] == "Make `n` things. At once."
    assert lines[start + 4 : start + 15] == [
        "| field | type | default | |",
        "| --- | --- | --- | --- |",
        "| `dry` | boolean | `false` |  |",
        "| `prompt` | string or list of strings | required | A text \\| or several. |",
        "| `n` | integer ≥ 1 ≤ 8 | `1` |  |",
        '| `order` | `"a"`, `"b"` | `"a"` |  |',
        "| `tools` | list of objects |  |  |",
        "| `tools.name` | string | required |  |",
        "| `tools.strict` | boolean | `false` |  |",
        "| `top_k` | integer |  | Most likely tokens. |",
        "",
    ]
    assert "| `name` | string | required |  |" in lines[lines.index("### `GET /v1/things/{name}`") :]


def test_surfaces_have_sections_and_refused_fields():
    page = reference()
    order = [
        page.index(part)
        for part in (
            "# HTTP API",
            "## OpenAI",
            "### Fields without",
            "| `user` | string |  | Ignored. |",
            "| `audio` | a \\| b |",
            "| `suffix` |",
            "## hasten",
            "`GET /health`",
        )
    ]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 2.0}, "number > 0 ≤ 2"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer"),
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}, "string or list of integers"),
        ({"type": ["string", "null"]}, "string"),
        ({"type": ["string", "object", "null"]}, "string or object"),
        ({"const": "auto"}, '`"auto"`'),
        ({"enum": ["a", None]}, '`"a"`'),
        ({"type": "array"}, "list"),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
            "list of lists of integers ≥ 0",
        ),
        ({}, "any value"),
        ({"$ref": "#/components/x"}, "boolean"),
    ],
)
def test_types_are_written_in_words(schema, expected):
    assert type_of(schema, {"components": {"x": {"type": "boolean"}}}) == expected
