"""A small application with the routes of a server, each of which answers who it was, behind ``protect``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.serving.api_error import ApiError
from hasten.serving.app import create_app
from hasten.serving.caller import caller_of
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.openai.errors import write_error
from hasten.serving.safety.protect import protect
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

GETS = ["/health", "/livez", "/readyz", "/metrics", "/v1/models", "/info", "/version", "/"]
POSTS = ["/v1/completions", "/v1/messages", "/generate", "/tokenize", "/reset_prefix_cache"]


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


@dataclass
class Dummy:
    """What the routes of a dummy server did. ``events``: the generator of the route that streams."""

    options: ServerOptions = field(default_factory=ServerOptions)
    reached: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    events: Callable[[], AsyncGenerator[bytes, None]] | None = None
    work: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        self.state = ServerState(self.options, models=None)
        self.surfaces = [
            Surface("anthropic", APIRouter(), ("/v1/messages",), anthropic_error, "request-id"),
            Surface("openai", self.router(), ("/v1",), write_error),
        ]
        self.inner = create_app(self.state, self.surfaces)
        self.app = protect(self.inner, self.state, self.surfaces)

    async def end_context(self) -> None:
        """Take some turns of the event loop, in which another cancellation would be seen."""
        for _ in range(10):
            await asyncio.sleep(0)
        self.ended.append("context")

    def router(self) -> APIRouter:
        router = APIRouter()

        async def get(request: Request) -> Response:
            self.reached.append(request.url.path)
            return JSONResponse({"path": request.scope["path"], "tenant": caller_of(request).tenant})

        async def post(request: Request) -> Response:
            body = await read_body(request, Anything) if await request.body() else Anything()
            self.reached.append(request.scope["path"])
            return JSONResponse({"body": body.model_dump(), "tenant": caller_of(request).tenant})

        async def stream(request: Request) -> Response:
            await request.body()
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self.end_context)
                return await event_response(self.events(), stack)
            raise AssertionError

        async def work(request: Request) -> Response:
            await request.body()
            return JSONResponse(await until_disconnect(request, self.work()))

        for path in GETS:
            router.add_api_route(path, get, methods=["GET"])
        for path in POSTS:
            router.add_api_route(path, post, methods=["POST"])
        router.add_api_route("/v1/stream", stream, methods=["POST"])
        router.add_api_route("/v1/messages/stream", stream, methods=["POST"])
        router.add_api_route("/v1/work", work, methods=["POST"])
        return router


def anthropic_error(error: ApiError, request_id: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": error.kind.name.lower(), "message": error.message}, "request_id": request_id}


@dataclass
class Answer:
    """What an application sent."""

    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    is_complete: bool = False

    def header(self, name: bytes) -> bytes | None:
        found = [value for each, value in self.headers if each == name]
        assert len(found) <= 1, found
        return found[0] if found else None


async def ask(app: Any, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes = b"", **scope: Any) -> Answer:
    """Call an application as a server does, without a socket, so that paths and headers may be anything."""
    answer, parts = Answer(), [body]

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert answer.status is None
            answer.status, answer.headers = message["status"], list(message["headers"])
        else:
            answer.body += message["body"]
            answer.is_complete = not message.get("more_body", False)

    made = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        **scope,
    }
    async with asyncio.timeout(20):
        await app(made, receive, send)
    return answer
