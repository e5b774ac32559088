"""A watched server with a few routes that use engines as those of the APIs do, and requests to them."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple

import httpx
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.serving.live_server import live_server

from hasten.core.sampling_params import SamplingParams
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.app import create_app
from hasten.serving.call import Call, open_call
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.metrics.access_log import AccessLog
from hasten.serving.metrics.surface import metrics_surface
from hasten.serving.metrics.watch import watch
from hasten.serving.models.base import ModelRegistry
from hasten.serving.openai.errors import write_error
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

NUMBERS = itertools.count()  # of prompts that no cache has


class Body(BaseModel):
    model: str | None = None
    prompt: str
    max_tokens: int = 8
    n: int = 1
    stream: bool = False


async def generate(request: Request) -> Response:
    body = await read_body(request, Body)
    params = SamplingParams(temperature=0 if body.n == 1 else 1, max_tokens=body.max_tokens, n=body.n, seed=7, ignore_eos=True)
    async with AsyncExitStack() as stack:
        call = await stack.enter_async_context(open_call(request, body.model))
        if body.stream:
            return await event_response(_events(call, call.llm.stream(body.prompt, params)), stack)
        output = await until_disconnect(request, call.llm.generate(body.prompt, params))
        call.usage.add(output)
        return JSONResponse({"text": output.outputs[0].text})


async def _events(call: Call, deltas: AsyncGenerator) -> AsyncGenerator[bytes, None]:
    try:
        async for delta in deltas:
            if delta.output is not None:
                call.usage.add(delta.output)
            yield f"data: {json.dumps(delta.text)}\n\n".encode()
    finally:
        await deltas.aclose()


async def item(secret: str) -> Response:
    return JSONResponse({"length": len(secret)})


async def boom() -> Response:
    raise RuntimeError("planted")


async def busy() -> Response:
    raise ApiError(ErrorKind.RATE_LIMIT, "the queue is full", retry_after=1.0)


def traffic_surface() -> Surface:
    router = APIRouter()
    router.add_api_route("/generate", generate, methods=["POST"], response_model=None)
    router.add_api_route("/items/{secret}", item, methods=["GET"], response_model=None)
    router.add_api_route("/boom", boom, methods=["GET"], response_model=None)
    router.add_api_route("/busy", busy, methods=["GET"], response_model=None)
    return Surface("traffic", router, ("/",), write_error)


class Watched(NamedTuple):
    url: str
    lines: list[str]  # of the access log
    state: ServerState


@contextmanager
def watched_server(models: ModelRegistry, **options: Any) -> Iterator[Watched]:
    state, lines = ServerState(ServerOptions(**options), models), []
    log = AccessLog(lines.append, clock=lambda: 1_700_000_000.25)
    app = watch(create_app(state, [metrics_surface(), traffic_surface()]), state, log=log)
    with live_server(app) as url:
        yield Watched(url, lines, state)


def make_traffic(client: httpx.Client, rounds: int = 1) -> None:
    """Send requests of every kind: streamed, repeated, forked, refused and wrong."""
    for number in range(rounds):
        for body in (
            {"prompt": f"# {next(NUMBERS)}\ndef add(a, b):\n    return a + b\n\ndef add", "max_tokens": 40, "stream": True},
            {"prompt": "def mul(a, b):", "max_tokens": 12, "model": "demo"},
            {"prompt": "def mul(a, b):", "max_tokens": 12},
            {"prompt": f"def f{number}(", "max_tokens": 4, "n": 2},
        ):
            assert client.post("/generate", json=body).status_code == 200
        for path, status in (("/busy", 429), ("/nowhere", 404), ("/items/s3cr3t", 200)):
            assert client.get(path).status_code == status
