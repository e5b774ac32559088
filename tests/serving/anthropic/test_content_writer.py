"""Deltas become content blocks: in order, whatever the cuts, and with calls that are whole."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from hasten.core.output import Delta
from hasten.core.tool_definition import ToolDefinition
from hasten.serving.anthropic.content_writer import PING_EVERY, ContentWriter
from hasten.serving.anthropic.message import add_up
from hasten.text.answers.answer_parser import AnswerParser

TOOLS = [ToolDefinition(name, "", {"type": "object", "properties": {}}) for name in ("weather", "clock")]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def deltas(text: str, cuts: Sequence[int]) -> list[Delta]:
    """Return the deltas of an answer whose text comes in these pieces."""
    parser = AnswerParser("hermes", "qwen3", tools=TOOLS)
    ends = [*cuts, len(text)]
    found = [parser.feed(text[begin:end]) for begin, end in zip([0, *cuts], ends, strict=True)] + [parser.finish()]
    return [
        Delta(request_id="r", index=0, text=each.content, token_ids=(), reasoning=each.reasoning, tool_calls=each.tool_calls)
        for each in found
    ]


def events(text: str, cuts: Sequence[int] = (), **options: Any) -> list[dict[str, Any]]:
    writer = ContentWriter(lambda thought: f"signed {len(thought)}", **options)
    return [event for delta in deltas(text, cuts) for event in writer.feed(delta)] + writer.finish()


def check_order(found: Sequence[dict[str, Any]]) -> None:
    """Assert that blocks are numbered and do not overlap, and that each delta is of the open block's type."""
    deltas_of = {"text": {"text_delta"}, "tool_use": {"input_json_delta"}, "thinking": {"thinking_delta", "signature_delta"}}
    index, kind, last = -1, None, ""
    kinds = [event["type"] for event in found]
    assert not kinds or kinds[kinds.index("content_block_start") + 1] == "ping", "the first block's start is followed by a ping"
    for event in found:
        if event["type"] == "ping":
            continue
        if event["type"] == "content_block_start":
            assert kind is None and last != "signature_delta"
            index, kind = index + 1, event["content_block"]["type"]
        elif event["type"] == "content_block_delta":
            assert kind is not None and last != "signature_delta"
            last = event["delta"]["type"]
            assert last in deltas_of[kind]
        else:
            assert event["type"] == "content_block_stop" and kind is not None
            assert (kind == "thinking") == (last == "signature_delta"), "a thought ends in its signature"
            kind, last = None, ""
        assert event["index"] == index
    assert kind is None


def content(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks that events add up to, with calls as (name, input)."""
    check_order(found)
    message = add_up([{"type": "message_start", "message": {"content": []}}, *found])
    blocks = message["content"]
    ids = [block.pop("id") for block in blocks if block["type"] == "tool_use"]
    assert len(set(ids)) == len(ids) and all(each.startswith("toolu_") for each in ids)
    return list(blocks)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def thought(words: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": words, "signature": f"signed {len(words)}"}


def use(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "name": name, "input": arguments}


BROKEN = '<tool_call>\n{"name": "weather", "arguments": {"city": tru\n</tool_call>'
ANSWERS = [
    ("Hello, world", [text("Hello, world")]),
    ("", []),
    (" \n", [text(" \n")]),
    ("<think>\nHm.\n</think>\n\nYes.\n", [thought("Hm."), text("Yes.\n")]),
    ("<think>\nHm.\n</think>\n\n" + call("clock", "{}"), [thought("Hm."), use("clock")]),
    (
        "One moment.\n" + call("weather", '{"city": "Zürich"}') + "\n" + call("clock", '{"zone": {"name": "UTC"}}'),
        [text("One moment."), use("weather", city="Zürich"), use("clock", zone={"name": "UTC"})],
    ),
    (call("clock", "{}") + "\nDone, <b>.", [use("clock"), text("Done, <b>.")]),
    ("So: " + BROKEN + " it was", [text("So: " + BROKEN + " it was")]),
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_blocks_are_the_same_for_all_cuts(answer: str, expected: list[dict[str, Any]]) -> None:
    parsed = AnswerParser("hermes", "qwen3", tools=TOOLS)
    parsed.feed(answer)
    parsed.finish()
    joined = "".join(block["text"] for block in expected if block["type"] == "text")
    assert joined.split() == parsed.answer.content.split(), "the expected blocks hold the parser's content"
    draw = random.Random(answer)
    for _ in range(100):  # a step gives a few tokens, so no piece begins a call and has text after its end
        sizes = draw.choices(range(1, draw.choice((2, 5, 13))), k=len(answer))
        cuts = [cut for cut in itertools.accumulate(sizes) if cut < len(answer)]
        assert content(events(answer, cuts)) == expected, cuts


def test_the_input_of_an_eager_tool_comes_in_fragments_and_others_at_once() -> None:
    answer = call("weather", '{"city": "Zürich", "days": [1, 2, 3]}')
    cuts = list(range(1, len(answer)))

    def fragments(**options: Any) -> list[str]:
        found = events(answer, cuts, **options)
        assert content(found) == [use("weather", city="Zürich", days=[1, 2, 3])]
        return [event["delta"]["partial_json"] for event in found if event["type"] == "content_block_delta"]

    (whole,) = fragments(eager_tools=["clock"])
    pieces = fragments(eager_tools=["weather"])
    assert len(pieces) > 20 and json.loads(whole) == json.loads("".join(pieces))


def test_a_long_call_is_announced_by_pings_until_it_is_complete() -> None:
    answer = "So." + call("weather", json.dumps({"city": "x" * 200}))
    found = events(answer, list(range(1, len(answer))))
    assert content(found) == [text("So."), use("weather", city="x" * 200)]
    kinds = [event["type"] for event in found]
    assert 200 // PING_EVERY <= kinds.count("ping") <= 2 + len(answer) // PING_EVERY
    assert "ping" in kinds[kinds.index("content_block_stop") - 1 - kinds.count("ping") : kinds.index("content_block_stop")]


def test_an_eager_call_that_is_malformed_ends_and_its_text_follows() -> None:
    found = events(BROKEN, list(range(1, len(BROKEN))), eager_tools=["weather"])
    check_order(found)
    texts = [event["delta"]["text"] for event in found if event.get("delta", {}).get("type") == "text_delta"]
    assert "".join(texts) == BROKEN


def test_one_call_ends_the_answer_where_no_other_may_follow() -> None:
    answer = "So.\n" + call("clock", "{}") + "\n" + call("weather", "{}") + "\n" + call("clock", "{}")
    writer = ContentWriter(str, one_call=True)
    found: list[dict[str, Any]] = []
    for delta in deltas(answer, list(range(1, len(answer)))):
        found += writer.feed(delta)
        if writer.is_complete:
            break
    else:
        raise AssertionError("the second call was not noticed")
    found += writer.finish()
    assert content(found) == [text("So."), use("clock")] and writer.num_calls == 1


def test_thoughts_may_be_left_out_but_not_their_signature() -> None:
    found = content(events("<think>\nHm.\n</think>\nYes.", [9, 12], omit_thoughts=True))
    assert found[0] == {"type": "thinking", "thinking": "", "signature": "signed 3"}
