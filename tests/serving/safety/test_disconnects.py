"""Clients of a real model leave at random times: queued, while their prompt is computed, while tokens come; streaming and not."""

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.exhaustive import repeats
from tests.serving.live_server import live_server

from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.app import create_app
from hasten.serving.call import open_call
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.models.single import SingleModel
from hasten.serving.openai.errors import write_error
from hasten.serving.safety.http_protocol import uvicorn_settings
from hasten.serving.safety.protect import protect
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

DEADLINE = 60.0
CLIENTS = 4  # at a time
LONGEST = 0.12  # seconds after which a client has left


class Body(BaseModel):
    number: int  # words of the prompt, and answers are drawn from the rest
    n: int = 1


class DemoServer:
    """Streams and answers of the demo model. ``after``: the engine's statistics right after each stream was closed."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm, self.after = llm, []
        self.has_statistics = threading.Event()
        self.state = ServerState(ServerOptions(), SingleModel("demo", llm, max_requests=64))
        router = APIRouter()
        router.add_api_route("/v1/answer", self.answer, methods=["POST"])
        router.add_api_route("/v1/stream", self.stream, methods=["POST"])
        surfaces = [Surface("openai", router, ("/v1",), write_error)]
        self.app = protect(create_app(self.state, surfaces), self.state, surfaces)

    async def answer(self, request: Request) -> Response:
        body = await read_body(request, Body)
        async with open_call(request, None, num_sequences=body.n) as call:
            output = await until_disconnect(request, call.llm.generate(*asked(body)))
            return JSONResponse({"text": output.outputs[0].text})
        raise AssertionError

    async def stream(self, request: Request) -> Response:
        body = await read_body(request, Body)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.look)  # after the place is free
            call = await stack.enter_async_context(open_call(request, None, num_sequences=body.n))
            return await event_response(self.events(call.llm, body), stack)
        raise AssertionError

    async def events(self, llm: AsyncLLM, body: Body) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(llm.stream(*asked(body))) as deltas:
            async for delta in deltas:
                yield f"data: {delta.text!r}\n\n".encode()

    async def look(self) -> None:
        self.after.append((await self.llm.stats(), self.state.admission.num_taken("demo")))
        self.has_statistics.set()


def asked(body: Body) -> tuple[dict[str, Any], SamplingParams]:
    ids = [3 + (index * 7 + body.number) % 200 for index in range(body.number)]
    return {"prompt_token_ids": ids}, SamplingParams(max_tokens=100, ignore_eos=True, n=body.n, temperature=1.0)


def leave_after(url: str, path: str, body: Body, seconds: float) -> bytes:
    """Send a request, read what comes in so many seconds, and leave."""
    host, port = url.removeprefix("http://").split(":")
    text, received = body.model_dump_json().encode(), b""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as client:
        client.sendall(head.encode() + text)
        client.settimeout(max(seconds, 1e-4))
        with contextlib.suppress(TimeoutError):
            received = client.recv(1 << 20)
    return received


async def idle(llm: AsyncLLM) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE):
        while True:
            found = await llm.stats()
            if not found["requests"]["running"] + found["requests"]["waiting"]:
                return found


def test_nothing_is_left_after_clients_that_leave_at_random_times(demo_llm: AsyncLLM) -> None:
    server, rng, number = DemoServer(demo_llm), random.Random(5), repeats("disconnects")
    before = asyncio.run(idle(demo_llm))
    plans = [
        (
            rng.choice(["/v1/stream", "/v1/answer"]),
            Body(number=rng.choice([1, 40, 400]), n=rng.choice([1, 1, 3])),
            rng.random() * LONGEST,
        )
        for _ in range(number)
    ]
    kinds, lock = {b"": 0, b"data": 0}, threading.Lock()

    def run(url: str, index: int) -> None:
        for plan in plans[index::CLIENTS]:
            received = leave_after(url, *plan)
            with lock:
                kinds[b"data" if b"data: " in received else b""] += 1

    with live_server(server.app, **uvicorn_settings(server.state.options)) as url:
        threads = [threading.Thread(target=run, args=(url, index)) for index in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE * number / 20)
        after = asyncio.run(idle(demo_llm))
    assert after["kv"]["held_blocks"] == before["kv"]["held_blocks"]
    assert server.state.admission.num_taken("demo") == 0
    assert after["requests"]["added"] > before["requests"]["added"] and min(kinds.values()) > 0, kinds
    aborted = after["requests"]["finished"].get("abort", 0) - before["requests"]["finished"].get("abort", 0)
    assert aborted >= number / 4, (aborted, after["requests"]["finished"])


@pytest.mark.parametrize("seconds", [0.0, 0.03])
def test_blocks_are_free_at_the_next_step(demo_llm: AsyncLLM, seconds: float) -> None:
    """The engine is asked as soon as the stream is closed; it answers between two steps."""
    server = DemoServer(demo_llm)
    before = asyncio.run(idle(demo_llm))
    with live_server(server.app, **uvicorn_settings(server.state.options)) as url:
        for _ in range(4):
            server.has_statistics.clear()
            leave_after(url, "/v1/stream", Body(number=300), seconds)
            assert server.has_statistics.wait(DEADLINE)
    for found, num_taken in server.after:
        assert found["requests"]["running"] + found["requests"]["waiting"] == num_taken == 0
        assert found["kv"]["held_blocks"] == before["kv"]["held_blocks"]
    assert len(server.after) == 4
