"""Messages: what is passed on, what is dropped, and what is refused by its place."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.serving.api_error import ApiError
from hasten.serving.openai.messages import read_messages, with_known_roles

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "a", "name": None}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": ""}, {"role": "user", "content": ""}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "assistant", "tool_calls": [CALL]}),
        (
            {
                "role": "assistant",
                "content": "a",
                "tool_calls": [],
                "annotations": [],
                "audio": None,
                "function_call": None,
                "refusal": None,
            },
            {"role": "assistant", "content": "a"},
        ),
        ({"role": "assistant", "content": None, "refusal": "No."}, {"role": "assistant", "content": "No."}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        ),
        ({"role": "assistant", "reasoning": "Hm."}, {"role": "assistant", "reasoning": "Hm."}),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "Hm."},
            {"role": "assistant", "content": "a", "reasoning_content": "Hm."},
        ),
        ({"role": "tool", "tool_call_id": "call_1", "content": "b"}, {"role": "tool", "tool_call_id": "call_1", "content": "b"}),
    ],
)
def test_messages_that_are_read(message: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_messages([message]) == [expected]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (5, "messages.1"),
        ({"content": "a"}, "messages.1.role"),
        ({"role": "function", "content": "a"}, "messages.1.role"),
        ({"role": ["user"], "content": "a"}, "messages.1.role"),
        ({"role": "user"}, "messages.1.content"),
        ({"role": "user", "content": None}, "messages.1.content"),
        ({"role": "user", "content": 5}, "messages.1.content"),
        ({"role": "user", "content": []}, "messages.1.content"),
        ({"role": "user", "content": [5]}, "messages.1.content.0"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}, "messages.1.content.1"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages.1.content.0"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages.1.content.0"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.1.content.0"),
        ({"role": "user", "content": [{"type": ["text"], "text": "a"}]}, "messages.1.content.0"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages.1.tool_calls"),
        ({"role": "assistant", "content": None}, "messages.1.content"),
        ({"role": "assistant", "content": "a", "function_call": {"name": "f"}}, "messages.1.function_call"),
        ({"role": "assistant", "content": "a", "audio": {"id": "a"}}, "messages.1.audio"),
        ({"role": "assistant", "content": "a", "reasoning": 5}, "messages.1.reasoning"),
        ({"role": "tool", "content": "a", "tool_call_id": 5}, "messages.1.tool_call_id"),
    ],
)
def test_messages_that_are_refused(message: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_messages([{"role": "user", "content": "a"}, message])
    assert caught.value.param == param and caught.value.status == 400


def test_developers_are_known_to_templates_that_name_them() -> None:
    messages = read_messages([{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}])
    assert with_known_roles(messages, "{% if message.role == 'developer' %}") == messages
    for template in ("{{ messages }}", None):
        assert [message["role"] for message in with_known_roles(messages, template)] == ["system", "user"]
