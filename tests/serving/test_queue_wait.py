"""Requests that wait too long for their first step."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tests.serving.safety.dummy_server import Answer, ask

from hasten.core.errors import HastenError
from hasten.serving.app import create_app
from hasten.serving.call import open_call
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.models.served_model import ServedModel
from hasten.serving.openai.errors import write_error
from hasten.serving.safety.protect import protect
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"2")]


class Engine:
    """Runs ``capacity`` requests at a time, in the order of their arrival, until ``finish`` is set."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.requests = capacity, []
        self.finish, self.num_asked, self.error = asyncio.Event(), 0, None

    async def stats(self) -> dict[str, Any]:
        self.num_asked += 1
        if self.error is not None:
            raise self.error
        return {"requests": {"waiting": max(0, len(self.requests) - self.capacity)}}

    @asynccontextmanager
    async def request(self) -> Any:
        mine = object()
        self.requests.append(mine)
        try:
            yield mine
        finally:
            self.requests.remove(mine)


class Server:
    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine = engine
        served = ServedModel("m", "m", engine, 0, 6)

        @asynccontextmanager
        async def use(name: str | None) -> Any:
            yield served

        self.state = ServerState(ServerOptions(**{"max_queue_seconds": 0.1, **options}), SimpleNamespace(use=use))
        router = APIRouter()
        router.add_api_route("/v1/answer", self.answer, methods=["POST"])
        router.add_api_route("/v1/stream", self.stream, methods=["POST"])
        surfaces = [Surface("openai", router, ("/v1",), write_error)]
        self.inner = create_app(self.state, surfaces)
        self.app = protect(self.inner, self.state, surfaces)

    async def answer(self, request: Request) -> Response:
        await request.body()

        async def work() -> str:
            async with self.engine.request():
                await self.engine.finish.wait()
                return "done"

        async with open_call(request, None):
            return JSONResponse(await until_disconnect(request, work()))
        raise AssertionError

    async def stream(self, request: Request) -> Response:
        await request.body()

        async def events() -> Any:
            async with self.engine.request() as mine:
                if mine not in self.engine.requests[: self.engine.capacity]:
                    await self.engine.finish.wait()
                yield b"data: 1\n\n"
                await self.engine.finish.wait()
                yield b"data: 2\n\n"

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(open_call(request, None))
            return await event_response(events(), stack)
        raise AssertionError


async def run(server: Server, paths: list[str], until_rejected: int) -> list[Answer]:
    """Send requests in order, let the engine finish when so many have been refused, and return the answers."""
    tasks = []
    for path in paths:
        tasks.append(asyncio.create_task(ask(server.app, "POST", path, HEADERS, b"{}")))
        while len(server.engine.requests) < len(tasks):
            await asyncio.sleep(0)
    async with asyncio.timeout(20):
        while server.state.admission.num_rejected < until_rejected or server.engine.num_asked < server_asks(server, paths):
            await asyncio.sleep(0)
    server.engine.finish.set()
    answers = await asyncio.gather(*tasks)
    assert server.engine.requests == [] and server.state.admission.num_taken("m") == 0
    return answers


def server_asks(server: Server, paths: list[str]) -> int:
    """Every request is asked about once, except for streams that have begun."""
    return len(paths) - sum(path == "/v1/stream" for path in paths[: server.engine.capacity])


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/stream"])
@pytest.mark.parametrize("capacity", [1, 3])
def test_those_that_wait_are_refused_and_those_that_run_are_not(path: str, capacity: int) -> None:
    async def scenario() -> None:
        server = Server(Engine(capacity))
        answers = await run(server, [path] * 5, 5 - capacity)
        assert [answer.status for answer in answers] == [200] * capacity + [429] * (5 - capacity)
        for answer in answers[capacity:]:
            assert b"waited 0.1 seconds" in answer.body and int(answer.header(b"retry-after")) >= 1
        assert server.engine.num_asked == server_asks(server, [path] * 5)  # nothing polls
        for answer in answers[:capacity]:
            assert answer.is_complete and (b"done" in answer.body or answer.body == b"data: 1\n\ndata: 2\n\n")

    asyncio.run(scenario())


def test_a_long_prompt_is_not_taken_for_a_wait() -> None:
    async def scenario() -> None:
        server = Server(Engine(6))
        answers = await run(server, ["/v1/answer", "/v1/stream"] * 3, 0)
        assert [answer.status for answer in answers] == [200] * 6

    asyncio.run(scenario())


def test_an_engine_that_does_not_say_refuses_nobody() -> None:
    async def scenario() -> None:
        engine = Engine(1)
        engine.error = HastenError("the engine has ended")
        answers = await run(Server(engine), ["/v1/answer"] * 3, 0)
        assert [answer.status for answer in answers] == [200] * 3

    asyncio.run(scenario())


def test_a_request_that_ends_first_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        engine = Engine(1)
        engine.finish.set()
        server = Server(engine, max_queue_seconds=0.05)
        assert (await ask(server.inner, "POST", "/v1/answer", HEADERS, b"{}")).status == 200
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        is_over = asyncio.Event()  # the time for which it could have waited
        asyncio.get_running_loop().call_later(0.1, is_over.set)
        await is_over.wait()
        assert engine.num_asked == 0

    asyncio.run(scenario())


def test_places_are_those_of_the_key() -> None:
    """One key takes all six places and gives two back; a key that was refused then gets one, and the first does not."""

    async def scenario() -> None:
        server = Server(Engine(6), api_keys=("first", "second"), max_queue_seconds=60)

        def send(key: bytes) -> asyncio.Task[Answer]:
            return asyncio.create_task(ask(server.app, "POST", "/v1/answer", [*HEADERS, (b"x-api-key", key)], b"{}"))

        async def wait_for(number: int) -> None:
            while len(server.engine.requests) != number:
                await asyncio.sleep(0)

        tasks = [send(b"first") for _ in range(6)]
        await wait_for(6)
        assert b"6 of 6 places are taken" in (await send(b"second")).body
        for task in tasks[:2]:
            task.cancel()
        await wait_for(4)
        assert b"this key has 4 places, and its share is 3 of 6" in (await send(b"first")).body
        tasks.append(send(b"second"))
        await wait_for(5)
        server.engine.finish.set()
        assert [answer.status for answer in await asyncio.gather(*tasks[2:])] == [200] * 5

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())
