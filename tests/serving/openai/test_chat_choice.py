"""Deltas of tool calls: their order, what cannot be taken back, and what does not count."""

from __future__ import annotations

from typing import Any

from hasten.core.answer import ToolCall, ToolCallDelta
from hasten.core.output import CompletionOutput, Delta
from hasten.core.result import FinishReason
from hasten.serving.openai.chat_choice import ChoiceStream, complete_choice
from hasten.serving.openai.chat_request import ChatRequest
from hasten.serving.openai.token_strings import TokenStrings


def read(*deltas: dict[str, Any], **body: Any) -> list[dict[str, Any] | None]:
    request = ChatRequest(messages=[{"role": "user", "content": "a"}], **body)
    stream = ChoiceStream(0, request, TokenStrings(None))
    return [stream.read(Delta(**{"request_id": "0", "index": 0, "text": "", "token_ids": (), **delta})) for delta in deltas]


def begin(index: int, name: str) -> dict[str, Any]:
    return {"tool_calls": (ToolCallDelta(index=index, id=f"id_{name}", name=name),)}


END = {"finish_reason": FinishReason.STOP}


def test_deltas_that_add_nothing_are_skipped() -> None:
    first, second, third = read({}, {}, {"text": "a"})
    assert first is not None and first["delta"] == {"role": "assistant", "content": ""}
    assert second is None and third is not None and third["delta"] == {"content": "a"}
    assert read({}, {"reasoning": "a"}, include_reasoning=False)[1] is None
    assert read({}, {"token_ids": (5,)}, return_token_ids=True)[1] is not None


def test_a_withdrawn_call_does_not_count_and_its_index_is_not_used_again() -> None:
    withdrawn = {"tool_calls": (ToolCallDelta(index=0, is_withdrawn=True),), "text": "broken"}
    chunks = read(begin(0, "f"), withdrawn, begin(0, "g"), END)
    indices = [part["index"] for chunk in chunks if chunk for part in chunk["delta"].get("tool_calls", ())]
    assert indices == [0, 1] and chunks[-1] is not None and chunks[-1]["finish_reason"] == "tool_calls"
    alone = read(begin(0, "f"), withdrawn, END)
    assert alone[-1] is not None and alone[-1]["finish_reason"] == "stop"
    unseen = read(withdrawn, begin(0, "g"), END)
    assert unseen[1] is not None and unseen[1]["delta"]["tool_calls"][0]["index"] == 0


def test_an_answer_that_was_cut_after_a_call_does_not_end_in_calls() -> None:
    cut = {"finish_reason": FinishReason.LENGTH}
    for body, expected in (({}, "length"), ({"parallel_tool_calls": False}, "tool_calls")):
        chunks = read(begin(0, "f"), cut, **body)
        assert chunks[-1] is not None and chunks[-1]["finish_reason"] == expected
        call = ToolCall(id="id_f", name="f", arguments="{}")
        completion = CompletionOutput(index=0, text="", token_ids=(), finish_reason=FinishReason.LENGTH, tool_calls=(call,))
        request = ChatRequest(messages=[{"role": "user", "content": "a"}], **body)
        assert complete_choice(completion, request, TokenStrings(None))["finish_reason"] == expected


def test_one_call_where_several_are_not_wanted() -> None:
    chunks = read(begin(0, "f"), begin(1, "g"), END, parallel_tool_calls=False)
    assert [chunk["delta"].get("tool_calls", []) != [] for chunk in chunks if chunk] == [True, False]
    assert chunks[1] is None and chunks[2] is not None and chunks[2]["finish_reason"] == "tool_calls"
