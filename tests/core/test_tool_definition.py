"""Definitions of tools: OpenAI's form, and one clear error for anything else."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.core.errors import InvalidRequest
from hasten.core.structured_outputs import MAX_DEPTH
from hasten.core.tool_definition import MAX_TOOLS, read_tool_definitions


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_definitions_are_read() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": True}, "required": ["a"]}
    first, second = read_tool_definitions([tool(description="d", parameters=schema, strict=True), tool(name="g")])
    assert (first.name, first.description, first.parameters, first.properties) == ("f", "d", schema, schema["properties"])
    assert (second.name, second.description, second.properties) == ("g", "", {})
    assert read_tool_definitions([]) == ()


cyclic: dict[str, Any] = {"type": "object"}
cyclic["properties"] = {"a": cyclic}
WRONG: list[tuple[Any, str]] = [
    ("f", "tools are not a list: got str"),
    ({"f": 1}, "tools are not a list: got dict"),
    ([tool()] * (MAX_TOOLS + 1), "too many tools: got 257; allowed: up to 256"),
    (["f"], r"tools\[0\] is not a definition of a function: got 'f'"),
    ([tool(), {"name": "g", "parameters": {}}], r"tools\[1\] is not a definition of a function"),
    ([{"type": "retrieval", "function": {"name": "f"}}], r"tools\[0\] is not a definition"),
    ([tool(name=3)], r"tools\[0\] has no proper name: got 3"),
    ([tool(name="a b")], "no proper name: got 'a b'"),
    ([tool(name="a" * 65)], "no proper name"),
    ([tool(name="")], "no proper name"),
    ([tool(), tool()], r"two tools have the same name: got f\. Rename"),
    ([tool(description=[1])], "description of tool f is not text"),
    ([tool(strict=[None])], "strict of tool f is neither true nor false: got"),
    ([tool(strict="yes")], "strict of tool f is neither"),
    ([tool(parameters=[])], "parameters of tool f are no schema of an object: got \\[\\]"),
    ([tool(parameters={"type": "string"})], "no schema of an object"),
    ([tool(parameters={"properties": ["a"]})], "properties of tool f are no schemas"),
    ([tool(parameters={"properties": {"a": 1}})], "properties of tool f are no schemas"),
    ([tool(parameters={"required": "a"})], "required arguments of tool f are no list"),
    ([tool(parameters={"required": [1]})], "required arguments of tool f are no list"),
    ([tool(parameters=nested(MAX_DEPTH))], "nested too deeply; allowed|nested too deeply: allowed"),
    ([tool(parameters=cyclic)], "nested too deeply"),
    ([tool(parameters={"enum": [object()]})], "schema of tool f is not JSON"),
    ([tool(parameters={"description": "a" * 70_000})], "too large: got 700.. characters; allowed: up to 65536"),
]


@pytest.mark.parametrize(("tools", "message"), WRONG)
def test_wrong_definitions_are_refused_in_one_line(tools: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_tool_definitions(tools)
    assert "\n" not in str(caught.value)


def test_the_deepest_schema_is_read() -> None:
    assert read_tool_definitions([tool(parameters=nested(MAX_DEPTH // 2 - 1))])
