"""Bodies of requests: what is accepted, and what is refused with the name of the field."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {}}
BASE: dict[str, Any] = {"model": "demo", "max_tokens": 1, "messages": [USER]}


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/messages", json={**BASE, **body})


ACCEPTED: dict[str, Any] = {
    "metadata": {"user_id": "u"},
    "service_tier": "standard_only",
    "inference_geo": "eu",
    "user_profile_id": "p",
    "workspace_id": "w",
    "diagnostics": {"previous_message_id": None},
    "speed": "standard",
    "temperature": 0,
    "top_p": 0.5,
    "top_k": 0,
    "stop_sequences": ["\n\n"],
    "thinking": {"type": "disabled"},
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "tools": [{"name": "t", "input_schema": SCHEMA, "allowed_callers": ["direct"], "defer_loading": False, "type": "custom"}],
    "system": [{"type": "text", "text": "x", "citations": None}],
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "cache_control": {"type": "ephemeral", "ttl": None},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_known_fields_are_accepted_and_null_is_absent(client: httpx.Client, name: str) -> None:
    for value in (ACCEPTED[name], None):
        response = ask(client, **{name: value})
        assert response.status_code == 200, response.text


def block(kind: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, **fields}]}]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": [USER] * 9}, "messages: there are 9; allowed: up to 8"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages.0: content: user messages must have non-empty content"),
    ({"messages": [{"role": "user", "content": []}]}, "non-empty content"),
    ({"messages": [USER, {"role": "assistant", "content": "It is "}]}, "trailing whitespace"),
    (block("image", source={}), "images are not supported"),
    (block("document", source={}), "documents are not supported"),
    (block("search_result"), "search results are not supported"),
    (block("server_tool_use"), "messages.0.content.0"),
    (block("tool_use", id="a", name="b", input={}), "tool_use blocks stand in assistant messages only"),
    (block("text", text="x", cache_control={"type": "lasting"}), "cache_control.type"),
    (block("text", text="x", cache_control={"type": "ephemeral", "ttl": "2h"}), "cache_control.ttl"),
    (block("tool_result", tool_use_id="a", content=[{"type": "image", "source": {}}]), "images are not supported"),
    ({"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, USER]}, "redacted thoughts"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}, USER]}, "user messages only"),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": ""}]}, USER]},
        "signature",
    ),
    ({"temperature": 1.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"speed": "fast"}, "speed"),
    ({"container": "x"}, "container"),
    ({"mcp_servers": []}, "mcp_servers"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits.0.type"),
    ({"n": 2}, "n: Extra inputs are not permitted"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools that run on the server"),
    ({"tools": [{"name": "t", "input_schema": SCHEMA, "defer_loading": True}]}, "defer_loading"),
    ({"tools": [{"name": "t", "input_schema": SCHEMA, "input_examples": [{}]}]}, "input_examples"),
    ({"tools": [{"name": "t t", "input_schema": SCHEMA}]}, "'t t'"),
    ({"tools": [{"name": "t", "input_schema": SCHEMA}], "tool_choice": {"type": "tool", "name": "u"}}, "none of the tools"),
    ({"tool_choice": {"type": "any"}}, "there are no tools"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024}, "max_tokens must be greater"),
    ({"thinking": {"type": "between_tools"}}, "thinking"),
    ({"output_config": {"effort": "low"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "nothing"),
    ({"stop_sequences": [""]}, "stop"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"system": [{"type": "image"}]}, "system.0.type"),
    ({"messages": [{"role": "user", "content": "word " * 600}]}, "prompt is too long: 611 tokens > 511 maximum"),
    ({"messages": [{"role": "user", "content": "word " * 600}], "stream": True}, "tokens > 511 maximum"),
]


def test_counts_refuse_wrong_marks_as_the_request_does(client: httpx.Client) -> None:
    marked = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    body = {**BASE, "messages": [{"role": "user", "content": [marked] * 5}]}
    messages = [ask(client, **body).json()["error"]["message"]]
    del body["max_tokens"]
    messages.append(client.post("/v1/messages/count_tokens", json=body).json()["error"]["message"])
    assert "maximum of 4 blocks" in messages[0] and messages[0] == messages[1]


@pytest.mark.parametrize(("fields", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_other_fields_and_values_are_refused_by_name(client: httpx.Client, fields: dict[str, Any], sentence: str) -> None:
    response = ask(client, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and sentence in error["message"], error["message"]
