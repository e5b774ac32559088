"""Tool calls and results in messages, in the form that each chat template reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.text.chat_templates import SPECIAL_TOKENS, TEMPLATES

from hasten.core.answer import ToolCall
from hasten.core.errors import InvalidRequest
from hasten.text.chat_template import ChatTemplate

# Templates that take arguments as text, as DeepSeek's do, or a content of None, as some of them do with calls.
JOINS_TEXT = """{% for message in messages %}{% if message['tool_calls'] is defined and message['tool_calls'] is not none -%}
{% for tool in message['tool_calls'] %}{% if message['content'] is none %}<call>{{ tool['function']['name'] + ' ' +
tool['function']['arguments'] }}{% else %}{{ message['content'] + '<call>' + tool['function']['name'] + ' ' +
tool['function']['arguments'] }}{% endif %}{% endfor %}{% else %}{{ message['content'] }};{% endif %}{% endfor %}"""
WANTS_NONE = """{% for message in messages %}{% if message['content'] is none %}{% for tool in message['tool_calls'] -%}
<call>{{ tool.function.name }} {{ tool.function.arguments | tojson }}{% endfor %}{% else %}{{ message['content'] }};{% endif -%}
{% endfor %}"""
LOOPS = """{% for message in messages %}{% for tool in message.tool_calls or [] %}<call>{{ tool.function.name }}
{%- for k, v in tool.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}{% endfor %}{{ message.content }};{% endfor %}"""
ARGUMENTS = {"city": "Zürich", "days": 3}
WRITTEN = '{"city": "Zürich", "days": 3}'


@pytest.fixture
def rendered() -> Iterator[Any]:
    opened: list[ChatTemplate] = []

    def render(source: str, *messages: dict[str, Any], **options: Any) -> str:
        opened.append(ChatTemplate(source, SPECIAL_TOKENS))
        return opened[-1].render([{"role": "user", "content": "Hi"}, *messages], **options)

    yield render
    for template in opened:
        template.close()


def calling(arguments: Any, **message: Any) -> dict[str, Any]:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call], **message}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (JOINS_TEXT, f"Hi;<call>weather {WRITTEN}"),
        (WANTS_NONE, f"Hi;<call>weather {WRITTEN}"),
        (LOOPS, "Hi;<call>weather city=Zürich days=3;"),
    ],
)
def test_arguments_and_contents_get_the_form_that_the_template_reads(rendered: Any, source: str, expected: str) -> None:
    for arguments in (ARGUMENTS, WRITTEN, '{"city":"Z\\u00fcrich","days":3}'):
        for content in ({}, {"content": None}):
            assert rendered(source, calling(arguments, **content)) == expected


def test_arguments_as_text_and_as_an_object_give_one_prompt(rendered: Any) -> None:
    result = {"role": "tool", "content": "sunny", "tool_call_id": "abcdefghi", "name": "weather"}
    for name in ("llama-3-tools", "qwen-2.5", "mistral"):
        texts = {rendered(TEMPLATES[name], calling(arguments, content=""), result) for arguments in (ARGUMENTS, WRITTEN)}
        assert len(texts) == 1 and "weather" in texts.pop(), name


def test_calls_of_an_answer_go_back_into_messages(rendered: Any) -> None:
    calls = (ToolCall("abcdefghi", "weather", WRITTEN),)
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    assert rendered(TEMPLATES["qwen-2.5"], message) == rendered(TEMPLATES["qwen-2.5"], calling(ARGUMENTS, content=""))


WRONG: list[tuple[list[dict[str, Any]], str]] = [
    ([calling("{")], "arguments of the call of 'weather' are not JSON"),
    ([calling("[" * 100_000)], "arguments of the call of 'weather' are not JSON"),
    ([calling("[1]")], r"arguments of the call of 'weather' are no object: got \[1\]"),
    ([calling(3)], "are no object: got 3"),
    ([calling(" " * 2_000_000)], "too long"),
    ([{"role": "assistant", "tool_calls": {"name": "f"}}], "tool_calls are not a list"),
    ([{"role": "assistant", "tool_calls": ["f"]}], "a tool call has the wrong form: got 'f'"),
    ([{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}], "a tool call has the wrong form"),
    ([{"role": "assistant", "tool_calls": [{"id": [1], "function": {"name": "f"}}]}], r"id that is no text.*id=\[1\]"),
    ([{"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "f"}}]}], "id that is no text"),
    ([{"role": "assistant", "tool_calls": [{"id": "a", "type": [], "function": {"name": "f"}}]}], "type other than function"),
    ([{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "function": {"name": "f"}}]}], "type other than function"),
    ([calling({}), {"role": "tool", "content": "x", "tool_call_id": "other"}], "a result belongs to no tool call before it"),
    ([calling({}), {"role": "tool", "content": "x", "tool_call_id": 3}], "allowed: 'abcdefghi'"),
]


@pytest.mark.parametrize(("messages", "message"), WRONG)
def test_wrong_calls_and_results_are_refused(rendered: Any, messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        rendered(TEMPLATES["qwen-2.5"], *messages)


def test_a_template_that_reads_no_calls_or_tools_is_named(rendered: Any) -> None:
    with pytest.raises(InvalidRequest, match="chat template takes no tool_calls"):
        rendered(TEMPLATES["chatml"], calling({}, content="x"))
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(InvalidRequest, match="chat template takes no tools"):
        rendered(TEMPLATES["chatml"], tools=[tool])
    with closing(ChatTemplate(TEMPLATES["qwen-2.5"], SPECIAL_TOKENS)) as template:
        assert '"name": "f"' in template.render([{"role": "user", "content": "Hi"}], tools=[tool])
