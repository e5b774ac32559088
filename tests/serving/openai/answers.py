"""Requests of tests, and what their streams add up to."""

from __future__ import annotations

import json
from typing import Any

import httpx


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    """Return the answer of a request that succeeds."""
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    """Return the error of a request that is refused with status 400."""
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 400, (response.status_code, response.text)
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    return dict(error)


def stream(client: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    """Return the chunks of a stream that ends well."""
    response = client.post(f"/v1/{path}", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "") and "\r" not in response.text
    assert all(chunk.startswith("data: {") and "\n" not in chunk for chunk in chunks)
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def joined_texts(chunks: list[dict[str, Any]]) -> dict[int, str]:
    """Return the texts of a stream of completions, by index."""
    texts: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def joined_messages(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the messages that the deltas of a chat add up to, by index, as OpenAI's clients do it."""
    found: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta = choice["delta"]
        message = found.setdefault(choice["index"], {"calls": {}, "finish_reason": None})
        for name in ("role", "content", "reasoning"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for part in delta.get("tool_calls", ()):
            call = message["calls"].setdefault(part["index"], {"id": part.get("id"), "name": "", "arguments": ""})
            assert ("id" in part) == ("name" in part["function"]) == ("type" in part)
            call["name"] += part["function"].get("name", "")
            call["arguments"] += part["function"]["arguments"]
        assert message["finish_reason"] is None, "nothing follows the last chunk of a choice"
        message["finish_reason"] = choice["finish_reason"]
    return found
