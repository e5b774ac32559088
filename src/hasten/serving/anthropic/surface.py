"""``anthropic_surface``: the routes of Anthropic's Messages API.

``anthropic-version`` and ``anthropic-beta`` headers are accepted and not read.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.serving.anthropic.answer_stream import answer_events, prepare
from hasten.serving.anthropic.breakpoints import read_breakpoints
from hasten.serving.anthropic.content_writer import Event
from hasten.serving.anthropic.errors import STATUS_OF, STATUS_OF_CODE, write_error
from hasten.serving.anthropic.message import ErrorResponse, Message, TokenCount, add_up
from hasten.serving.anthropic.messages_request import Conversation, MessagesRequest
from hasten.serving.api_error import ErrorKind, as_api_error
from hasten.serving.call import Call, open_call
from hasten.serving.event_json import event_json
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.log_failure import log_failure
from hasten.serving.openapi_body import openapi_body
from hasten.serving.surface import Surface

log = logging.getLogger(__name__)

REQUEST_ID = "request-id"
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 413, 429, 500, 529)}
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


def anthropic_surface() -> Surface:
    """Return the surface with ``/v1/messages`` and ``/v1/messages/count_tokens``."""
    router = APIRouter(tags=["anthropic"])
    router.add_api_route(
        "/v1/messages",
        create_message,
        methods=["POST"],
        responses={200: {"model": Message, "content": _STREAM}, **_ERRORS},
        openapi_extra=openapi_body(MessagesRequest),
    )
    router.add_api_route(
        "/v1/messages/count_tokens",
        count_tokens,
        methods=["POST"],
        responses={200: {"model": TokenCount}, **_ERRORS},
        openapi_extra=openapi_body(Conversation),
    )
    return Surface(
        name="anthropic",
        router=router,
        prefixes=("/v1/messages",),
        write_error=write_error,
        request_id_header=REQUEST_ID,
        status_of=STATUS_OF,
        status_of_code=STATUS_OF_CODE,
    )


async def create_message(request: Request) -> Response:
    """Answer a conversation, as one message or as a stream of events."""
    body = await read_body(request, MessagesRequest)
    async with AsyncExitStack() as stack:
        call = await stack.enter_async_context(open_call(request, body.model))
        if body.stream:
            response = await until_disconnect(request, event_response(_written(call, body), stack))
        else:
            response = JSONResponse(await until_disconnect(request, _message(call, body)))
        response.headers[REQUEST_ID] = _request_id(call)
        return response


async def count_tokens(request: Request) -> Response:
    """Return the number of tokens of the prompt that the same request to ``/v1/messages`` has."""
    body = await read_body(request, Conversation)
    read_breakpoints(body)  # refuses what the request itself would refuse
    async with open_call(request, body.model) as call:
        prepared = await prepare(call, body)
        return JSONResponse({"input_tokens": len(prepared.token_ids)}, headers={REQUEST_ID: _request_id(call)})


async def _message(call: Call, body: MessagesRequest) -> dict[str, Any]:
    async with aclosing(answer_events(call, body)) as events:
        return add_up([event async for event in events])


async def _written(call: Call, body: MessagesRequest) -> AsyncGenerator[bytes, None]:
    """Yield the events of an answer as they are sent. An error after the first is an event, too."""
    has_begun = False
    async with aclosing(answer_events(call, body)) as events:
        try:
            async for event in events:
                yield _encode(event)
                has_begun = True
        except Exception as exception:
            if not has_begun:
                raise
            error = as_api_error(exception)
            if error.kind is ErrorKind.INTERNAL:
                log_failure(log, exception)
            yield _encode(write_error(error, _request_id(call)))


def _encode(event: Event) -> bytes:
    return f"event: {event['type']}\ndata: {event_json(event)}\n\n".encode()


def _request_id(call: Call) -> str:
    return f"req_{call.id}"
