"""A program: ``run_server`` with engines without a model, which its own routes command.

Usage: python commanded_server.py '{"drain_timeout": 1}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hasten.core.errors import CheckpointError, HastenError
from hasten.serving.api_error import as_api_error
from hasten.serving.call import open_call
from hasten.serving.event_stream import event_response
from hasten.serving.models import model_slot, recent_failures
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.native import probes
from hasten.serving.openai.errors import write_error
from hasten.serving.run_server import run_server
from hasten.serving.server_options import ServerOptions
from hasten.serving.surface import Surface

router = APIRouter()


class Engine:
    """Generates tokens until it is told to finish, or closed."""

    def __init__(self) -> None:
        self.is_dead = False
        self.finished = asyncio.Event()
        self.closed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return self.is_dead or self.closed.is_set()

    @property
    def max_model_len(self) -> int:
        return 64

    async def stats(self) -> dict[str, Any]:
        if self.is_dead:
            raise HastenError("the engine has ended")
        return {}

    async def generate(self) -> AsyncGenerator[str, None]:
        yield "token"
        waits = [asyncio.ensure_future(event.wait()) for event in (self.finished, self.closed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if self.closed.is_set():
            raise HastenError("the engine has ended")
        yield "[DONE]"

    async def close(self) -> None:
        self.closed.set()


ENGINES: list[Engine] = []


async def load(config: ModelConfig) -> Any:
    if config.path == "broken":
        raise CheckpointError("there is no model here", got=config.path)
    if config.path == "slow":
        await asyncio.to_thread(threading.Event().wait)  # for ever
    ENGINES.append(Engine())
    return ENGINES[-1]


@router.get("/stream")
async def stream(request: Request) -> Response:
    async with AsyncExitStack() as stack:
        call = await stack.enter_async_context(open_call(request, None))
        engine: Any = call.llm

        async def events() -> AsyncGenerator[bytes, None]:
            try:
                async for text in engine.generate():
                    yield f"data: {text}\n\n".encode()
            except HastenError as error:
                yield f"data: {json.dumps(write_error(as_api_error(error), ''))}\n\n".encode()

        return await event_response(events(), stack)


@router.post("/finish")
async def finish() -> None:
    ENGINES[-1].finished.set()


@router.post("/die")
async def die() -> None:
    ENGINES[-1].is_dead = True


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    options = json.loads(sys.argv[1])
    path = options.pop("path", "/models/a")
    if options.pop("hurry", False):  # the times of pings and restarts
        model_slot.PING_INTERVAL, recent_failures.FIRST_DELAY = 0.01, 0.1
        recent_failures.MAX_DELAY = 0.1
    surfaces = [
        Surface("probes", probes.router, probes.PROBE_PATHS, write_error),
        Surface("test", router, ("/",), write_error),
    ]
    try:
        return run_server([ModelConfig("a", path)], ServerOptions(port=0, **options), say, load=load, surfaces=surfaces)
    except HastenError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
