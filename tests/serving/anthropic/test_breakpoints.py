"""Breakpoints: which blocks are marked, in which order, and where in the prompt they end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from hasten.core.request import PrefixPin
from hasten.serving.anthropic.breakpoints import prefix_pins, read_breakpoints
from hasten.serving.anthropic.chat_input import chat_input
from hasten.serving.anthropic.messages_request import Conversation
from hasten.serving.api_error import ApiError
from hasten.text.chat_template import ChatTemplate

SHORT, LONG = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def conversation(**body: Any) -> Conversation:
    return Conversation.model_validate({"model": "demo", "messages": [{"role": "user", "content": "Hi"}], **body})


def text(words: str, mark: Any = None) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": mark}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def marks(**body: Any) -> list[tuple[int, float]]:
    return [(each.number, each.seconds) for each in read_breakpoints(conversation(**body))]


def test_marks_stand_in_the_order_of_tools_system_and_messages() -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": [text("inner", SHORT)], "cache_control": SHORT}
    tools = [{"name": "a", "input_schema": SCHEMA}, {"name": "b", "input_schema": SCHEMA, "cache_control": LONG}]
    found = marks(messages=[user(text("q")), user(result, text("r"))], system=[text("s"), text("t", LONG)], tools=tools)
    assert found == [(1, 3600), (3, 3600), (5, 300), (6, 300)]
    assert marks() == [] and marks(system=[text("s", {"type": "ephemeral", "ttl": "5m"})]) == [(0, 300)]


def test_the_mark_of_a_request_is_that_of_its_last_block() -> None:
    thought = {"type": "thinking", "thinking": "x", "signature": "y"}
    turns = [user(text("q")), {"role": "assistant", "content": [text("a"), thought]}]
    assert marks(cache_control=LONG, messages=turns) == [(1, 3600)], "a thought takes no mark"
    assert marks(cache_control=SHORT, messages=[user(text("q", SHORT))]) == [(0, 300)]
    assert marks(cache_control=SHORT, messages=[user(text("q"), text(""))]) == [(0, 300)], "nor does an empty text"
    with pytest.raises(ApiError, match="marked with ttl '1h', and the request with '5m'"):
        marks(cache_control=SHORT, messages=[user(text("q", LONG))])


def test_wrong_marks_are_refused() -> None:
    blocks = [text("q", SHORT)] * 4
    assert len(marks(messages=[user(*blocks)])) == 4
    with pytest.raises(ApiError, match=r"maximum of 4 blocks.*got 5"):
        marks(messages=[user(*blocks)], system=[text("s", SHORT)])
    with pytest.raises(ApiError, match="maximum of 4 blocks"):
        marks(messages=[user(*blocks, text("last"))], cache_control=SHORT)
    with pytest.raises(ApiError, match="must not come after"):
        marks(system=[text("s", SHORT)], messages=[user(text("q", LONG))])
    with pytest.raises(ApiError, match="must not come after"):
        marks(system=[text("s", SHORT)], cache_control=LONG)
    with pytest.raises(ApiError, match="empty text blocks"):
        marks(messages=[user(text("q"), text("", SHORT))])


TOOLS_FIRST = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}:{{ tool.function.parameters | tojson }}>{% endfor %}/"
    "{% for m in messages %}[{{ m.role }}|{{ m.reasoning_content }}|{{ m.content }}"
    "{% for call in m.tool_calls or [] %}({{ call.function.name }}={{ call.function.arguments | tojson }}){% endfor %}]{% endfor %}"
)
SYSTEM_FIRST = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }};{% endif %}"
    "{% for tool in tools or [] %}{{ tool.function.name }}, {% endfor %}"
    "{% for m in messages if m.role != 'system' %}\n{{ m.role }}: {{ m.content | trim }}"
    "{% for call in m.tool_calls or [] %}({{ call.function.name }}={{ call.function.arguments | tojson }}){% endfor %}{% endfor %}"
)
CALL = {"type": "tool_use", "id": "x", "name": "zeta", "input": {"city": "Rome"}}
BODY: dict[str, Any] = {
    "tools": [{"name": "alpha", "input_schema": SCHEMA}, {"name": "zeta", "input_schema": SCHEMA}],
    "system": [text("Sys-A."), text("Sys-B.")],
    "messages": [
        user(text("Query-A."), text("Query-B.")),
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, text("Say."), CALL]},
        user({"type": "tool_result", "tool_use_id": "x", "content": [text("Result.")]}, text("Last.")),
    ],
}


def number_of_tokens(template: str, number: int, body: dict[str, Any] = BODY) -> tuple[str, int]:
    """Return the prompt, one token per character, and where the block of this number ends in it."""
    chat_template = ChatTemplate(template, {})

    async def encode(asked: Conversation) -> Sequence[int]:
        found = chat_input(asked, template)
        return list(map(ord, chat_template.render(found.messages, tools=found.tools, **found.template)))

    async def run() -> tuple[Sequence[int], list[PrefixPin]]:
        asked, counter = conversation(**body), itertools.count()
        for block in (
            *asked.tools,
            *asked.system,
            *(inner for each in asked.messages for b in each.content for inner in (*(getattr(b, "content", None) or ()), b)),
        ):
            if getattr(block, "type", None) != "thinking" and next(counter) == number:
                block.cache_control = Conversation.model_validate({**body, "model": "x", "cache_control": SHORT}).cache_control
        (found,) = read_breakpoints(asked)
        assert found.number == number
        tokens = await encode(asked)
        return tokens, await prefix_pins(asked, [found], tokens, encode)

    try:
        tokens, pins = asyncio.run(run())
    finally:
        chat_template.close()
    return "".join(map(chr, tokens)), pins[0].num_tokens if pins else 0


@pytest.mark.parametrize("template", [TOOLS_FIRST, SYSTEM_FIRST], ids=["tools first", "system first"])
@pytest.mark.parametrize("number", range(11))
def test_a_block_ends_where_the_template_writes_its_end(template: str, number: int) -> None:
    tools = ('"string"}}}>', ">/") if template is TOOLS_FIRST else ("alpha, ", "zeta, ")
    ends = [*tools, "Sys-A.", "Sys-B.", "Query-A.", "Query-B.", "Say.", '"Rome"', "Result.", "Result.", "Last."]
    prompt, found = number_of_tokens(template, number)
    expected = prompt.index(ends[number]) + len(ends[number]) - (ends[number] == ">/")
    assert found == expected, (prompt[:found], prompt[found:])


def test_a_block_that_the_template_leaves_out_marks_nothing() -> None:
    body = {"system": [text("Sys.")], "messages": [user(text("Query."))]}
    assert number_of_tokens("{{ messages[-1].content }}", 0, body) == ("Query.", 0)
    assert number_of_tokens("{{ messages[-1].content }}", 1, body) == ("Query.", 6)


def test_the_marks_change_nothing_in_the_request() -> None:
    body = conversation(**BODY)
    before = body.model_dump_json()

    marked = []

    async def encode(asked: Conversation) -> Sequence[int]:
        marked.append(asked)
        return list(asked.model_dump_json().encode())

    body.cache_control = Conversation.model_validate({**BODY, "model": "x", "cache_control": SHORT}).cache_control
    pins = asyncio.run(prefix_pins(body, read_breakpoints(body), asyncio.run(encode(body)), encode))
    body.cache_control = None
    assert len(pins) == 1 and body.model_dump_json() == before
    # Only what differs is copied, in the event loop.
    assert marked[1].messages[0].content[0] is body.messages[0].content[0] and marked[1].system[0] is body.system[0]
