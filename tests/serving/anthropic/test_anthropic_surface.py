"""The routes as bytes: events, errors, headers and the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import pytest
from tests.serving.anthropic.test_messages_request import ACCEPTED, BASE
from tests.serving.anthropic.written_llm import WrittenLLM
from tests.serving.live_server import live_server

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.anthropic.surface import anthropic_surface
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState

ANSWER = 'Hm.\n</think>\n\nWait.\n<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC é"}}\n</tool_call>'
CLOCK = {"name": "clock", "input_schema": {"type": "object", "properties": {"zone": {"type": "string"}}}}


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream, whose bytes have the exact form."""
    *parts, rest = text.split("\n\n")
    assert rest == "" and "\r" not in text and "[DONE]" not in text
    events = []
    for part in parts:
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert data.startswith("data: {") and name == f"event: {event['type']}"
        events.append(event)
    return events


def test_a_stream_has_the_events_in_their_order(written_llm: WrittenLLM, written_url: str) -> None:
    written_llm.write(ANSWER, size=11)
    body = {**BASE, "max_tokens": 99, "stream": True, "tools": [CLOCK], "thinking": {"type": "adaptive"}}
    response = httpx.post(f"{written_url}/v1/messages", json=body)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    kinds = [(event["type"], event.get("delta", {}).get("type", event.get("index"))) for event in events]
    assert list(dict.fromkeys(kinds)) == [
        ("message_start", None),
        ("content_block_start", 0),
        ("ping", None),
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "signature_delta"),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", "text_delta"),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", "input_json_delta"),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    start, end = events[0]["message"], events[-2]
    assert response.headers["request-id"] == start["id"].replace("msg_", "req_")
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert end["usage"] == {
        "input_tokens": start["usage"]["input_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": len(written_llm.pieces),
    }
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts[2]["input"] == {} and starts[:2] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
    ]
    assert "UTC é" in response.text, "text is not escaped"


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "kind"),
    [
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"[]", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"[" * 65, 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", b'{"model": "demo"}', 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", json.dumps({**BASE}).encode(), 400, "invalid_request_error"),
        ("GET", "/v1/messages", b"", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", b"{}", 404, "not_found_error"),
        ("POST", "/v1/messages", json.dumps({**BASE, "model": "other"}).encode(), 404, "not_found_error"),
    ],
)
def test_errors_have_the_form_and_the_id(
    client: httpx.Client, method: str, path: str, content: bytes, status: int, kind: str
) -> None:
    response = client.request(method, path, content=content)
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["type", "error", "request_id"] and body["type"] == "error"
    assert body["error"]["type"] == kind and body["request_id"] == response.headers["request-id"]


def test_a_full_queue_is_an_overload_before_anything_is_tokenised(demo_llm: AsyncLLM) -> None:
    state = ServerState(ServerOptions(), SingleModel("demo", demo_llm, max_requests=1))
    with live_server(create_app(state, [anthropic_surface()])) as url, state.admission.place("demo", 1):
        for path, body in (("/v1/messages", BASE), ("/v1/messages", {**BASE, "stream": True})):
            response = httpx.post(url + path, json=body)
            assert response.status_code == 529 and response.json()["error"]["type"] == "overloaded_error"
            assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_token_ends_its_request(
    written_llm: WrittenLLM, written_url: str, stream: bool
) -> None:
    written_llm.is_stuck = True
    send_and_leave(httpx.URL(written_url), {**BASE, "stream": stream}, lambda: written_llm.answer_began.wait(20))
    assert written_llm.answer_ended.wait(20)


def send_and_leave(url: httpx.URL, body: dict[str, Any], wait: Callable[[], object]) -> None:
    content = json.dumps(body).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head + content)
        assert wait() is not False


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(demo_llm: AsyncLLM, client: httpx.Client, stream: bool) -> None:
    def count(name: str) -> int:
        return int(asyncio.run(demo_llm.stats())["requests"][name])

    def wait_until(is_true: Any) -> None:
        deadline = time.monotonic() + 20
        while not is_true():
            assert time.monotonic() < deadline, asyncio.run(demo_llm.stats())["requests"]

    before = count("added")
    aborted = asyncio.run(demo_llm.stats())["requests"]["finished"]["abort"]
    body = {**BASE, "max_tokens": 480, "stream": stream}
    send_and_leave(client.base_url, body, lambda: wait_until(lambda: count("added") > before))
    wait_until(lambda: not count("running") and not count("waiting"))
    assert asyncio.run(demo_llm.stats())["requests"]["finished"]["abort"] == aborted + 1


def test_the_openapi_document_has_the_routes_with_their_schemas(demo_llm: AsyncLLM) -> None:
    app = create_app(ServerState(ServerOptions(), SingleModel("demo", demo_llm)), [anthropic_surface()])
    document = json.loads(json.dumps(app.openapi()))
    for path, name in (("/v1/messages", "Message"), ("/v1/messages/count_tokens", "TokenCount")):
        route = document["paths"][path]["post"]
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        assert "$ref" not in json.dumps(schema) and "discriminator" not in json.dumps(schema)
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        answer = route["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer == {"$ref": f"#/components/schemas/{name}"} and name in document["components"]["schemas"]
        assert {"400", "401", "404", "429", "529"} <= route["responses"].keys()
        body = BASE if name == "Message" else {key: value for key, value in BASE.items() if key != "max_tokens"}
        accepted = {key: value for key, value in ACCEPTED.items() if name == "Message" or key in schema["properties"]}
        assert validator.is_valid({**body, **accepted})
        assert validator.is_valid({**body, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]})
        assert not validator.is_valid({**body, "n": 2})
