"""Tools and the choice among them."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.serving.api_error import ApiError
from hasten.serving.openai.tools import Tools, read_tools

F, G = ({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}} for name in "fg")


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: Any, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("definitions", "choice", "expected"),
    [
        (None, None, Tools()),
        ([], "none", Tools()),
        ([F], None, Tools([F], "auto")),
        ([F, G], "required", Tools([F, G], "required")),
        ([F, G], "none", Tools([F, G], "none")),
        ([F, G], {**named("g"), "extra": 1}, Tools([F, G], named("g"))),
        ([F, G], allowed("auto", named("g")), Tools([G], "auto")),
        ([F, G], allowed("required", named("g"), named("f")), Tools([F, G], "required")),
    ],
)
def test_choices(definitions: Any, choice: Any, expected: Tools) -> None:
    assert read_tools(definitions, choice) == expected


@pytest.mark.parametrize(
    ("definitions", "choice", "param"),
    [
        (None, "auto", "tool_choice"),
        ([], "required", "tool_choice"),
        ([F], "any", "tool_choice"),
        ([F], named("g"), "tool_choice"),
        ([F], named(["f"]), "tool_choice"),
        ([F], {"type": "custom"}, "tool_choice"),
        ([F], ["none"], "tool_choice"),
        ([F], allowed("any", named("f")), "tool_choice"),
        ([F], allowed("auto"), "tool_choice"),
        ([F], allowed("auto", named("g")), "tool_choice"),
        ([F], allowed("auto", 5), "tool_choice"),
        ([F], {"type": "allowed_tools"}, "tool_choice"),
        ([F, F], None, "tools"),
        ([{"type": "custom"}], None, "tools"),
        ("f", None, "tools"),
        (5, None, "tools"),
    ],
)
def test_wrong_tools_and_choices(definitions: Any, choice: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_tools(definitions, choice)
    assert caught.value.param == param and caught.value.status == 400
