"""Conversations become the messages, tools and variables that chat templates take."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.serving.anthropic.chat_input import ChatInput, chat_input
from hasten.serving.anthropic.messages_request import Conversation
from hasten.serving.api_error import ApiError

USER = {"role": "user", "content": "Hi"}
TOOL = {
    "name": "weather",
    "description": "Tell it.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def convert(source: str = "", **body: Any) -> ChatInput:
    return chat_input(Conversation.model_validate({"model": "demo", "messages": [USER], **body}), source)


def messages(*turns: tuple[str, Any], **body: Any) -> list[dict[str, Any]]:
    return convert(messages=[{"role": role, "content": content} for role, content in turns], **body).messages


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def parts(*words: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": each} for each in words]


def test_texts_and_system_prompts() -> None:
    assert messages(("user", "Hi")) == [{"role": "user", "content": "Hi"}]
    assert messages(("user", [text("a")]), system="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
    ]
    found = messages(("user", [text("a"), text("b")]), system=[text("x"), text("y", cache_control={"type": "ephemeral"})])
    assert found == [{"role": "system", "content": parts("x", "y")}, {"role": "user", "content": parts("a", "b")}]
    assert messages(("user", "Hi"), system="") == [{"role": "user", "content": "Hi"}]


def test_consecutive_messages_of_a_role_are_one_turn() -> None:
    found = messages(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", [text("d")]), ("user", "e"))
    assert found == [
        {"role": "user", "content": parts("a", "b")},
        {"role": "assistant", "content": parts("c", "d")},
        {"role": "user", "content": "e"},
    ]


def test_calls_results_and_thoughts() -> None:
    use = {"type": "tool_use", "id": "toolu_abc", "name": "weather", "input": {"city": "Zürich"}}
    foreign = {"type": "tool_use", "id": "call-7", "name": "clock", "input": {}}
    thought = {"type": "thinking", "thinking": "Look it up.", "signature": "any"}
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_abc", "content": [text("sunny"), text("warm")]},
        {"type": "tool_result", "tool_use_id": "call-7", "content": "broken", "is_error": True},
        {"type": "tool_result", "tool_use_id": "unknown"},
        text("Well?"),
    ]
    found = messages(("user", "Hi"), ("assistant", [thought, text("So."), use, foreign]), ("user", results))
    assert found[1:] == [
        {
            "role": "assistant",
            "content": "So.",
            "reasoning_content": "Look it up.",
            "tool_calls": [
                {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}},
                {"id": "call-7", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "abc", "content": "sunny\nwarm", "name": "weather"},
        {"role": "tool", "tool_call_id": "call-7", "content": "Error: broken", "name": "clock"},
        {"role": "tool", "tool_call_id": "unknown", "content": ""},
        {"role": "user", "content": "Well?"},
    ]
    assert messages(("user", "Hi"), ("assistant", [use]), ("user", "x"))[1]["content"] == ""


def test_tools_and_their_choice() -> None:
    found = convert(tools=[TOOL, {**TOOL, "name": "bare", "description": None, "strict": True, "type": "custom"}])
    assert found.tools == [
        {"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": TOOL["input_schema"]}},
        {"type": "function", "function": {"name": "bare", "parameters": TOOL["input_schema"]}},
    ]
    named = {"type": "function", "function": {"name": "weather"}}
    choices = {"auto": "auto", "any": "required", "none": "none"}
    assert {name: convert(tool_choice={"type": name}).tool_choice for name in choices} == choices
    assert convert(tool_choice={"type": "tool", "name": "weather"}).tool_choice == named
    assert convert().tool_choice == "auto" and convert().tools is None
    one = {"type": "any", "disable_parallel_tool_use": True}
    assert convert(tool_choice=one, tools=[TOOL]).tool_choice == named
    assert convert(tool_choice=one, tools=[TOOL, {**TOOL, "name": "bare"}]).tool_choice == "required"


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, True),
    ],
)
def test_thinking_is_a_variable_of_templates_that_read_it(thinking: Any, expected: bool) -> None:
    assert convert("{% if enable_thinking %}", thinking=thinking).template == {
        "chat_template_kwargs": {"enable_thinking": expected}
    }
    assert convert("{% if thinking %}", thinking=thinking).template == {}


def test_effort_is_a_variable_of_templates_that_read_it_and_else_only_high() -> None:
    for effort, expected in {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}.items():
        found = convert("{{ reasoning_effort }}", output_config={"effort": effort})
        assert found.template == {"chat_template_kwargs": {"reasoning_effort": expected}}
    assert convert(output_config={"effort": "high"}).template == {}
    with pytest.raises(ApiError, match=r"output_config\.effort.*'low'"):
        convert(output_config={"effort": "low"})


def test_an_answer_continues_a_last_message_of_the_assistant() -> None:
    found = convert(messages=[USER, {"role": "assistant", "content": "It is"}])
    assert found.template == {"continue_final_message": True, "add_generation_prompt": False}
    for content in ("It is ", [], [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]):
        with pytest.raises(ApiError, match="final assistant"):
            convert(messages=[USER, {"role": "assistant", "content": content}])
