"""``Message``: what ``POST /v1/messages`` answers, and how the events of a stream add up to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class CacheCreation(BaseModel):
    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class MessageUsage(BaseModel):
    """The three counts of input tokens add up to the whole prompt."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    cache_creation: CacheCreation
    output_tokens: int
    service_tier: Literal["standard"]


class Message(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    input_tokens: int


class ErrorDetails(BaseModel):
    type: str
    message: str


class ErrorResponse(BaseModel):
    type: Literal["error"]
    error: ErrorDetails
    request_id: str


def add_up(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the message that the events of a complete stream add up to."""
    message: dict[str, Any] = {}
    fragments: dict[str, list[str]] = {}  # of the block that is read, by its field
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = dict(event["message"])
        elif kind == "content_block_start":
            message["content"].append(dict(event["content_block"]))
            fragments = {}
        elif kind == "content_block_delta":
            for name, text in event["delta"].items():
                if name != "type":
                    fragments.setdefault(name, []).append(text)
        elif kind == "content_block_stop":
            block = message["content"][-1]
            for name, texts in fragments.items():
                if name == "partial_json":
                    block["input"] = json.loads("".join(texts) or "{}")
                else:
                    block[name] = "".join(texts)
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] = message["usage"] | event["usage"]
    return message
