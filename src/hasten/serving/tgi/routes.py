"""``/generate``, ``/generate_stream``, ``/`` and ``/info``."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hasten.core.version import __version__
from hasten.serving.call import open_call
from hasten.serving.event_stream import event_response, until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.openapi_body import event_stream, openapi_body
from hasten.serving.server_state import state_of
from hasten.serving.tgi.generate_request import CompatGenerateRequest, GenerateRequest
from hasten.serving.tgi.generate_response import ERRORS, GenerateError, GenerateResponse, Info, StreamFrame
from hasten.serving.tgi.generation import Generation

router = APIRouter(tags=["tgi"], responses=ERRORS)
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": event_stream(StreamFrame, GenerateError), "description": "A frame for each token"}
}
_EITHER: dict[int | str, dict[str, Any]] = {
    200: {"content": event_stream(StreamFrame, GenerateError), "description": "A list of one answer, or a stream of its tokens"}
}


@router.post("/generate", response_model=GenerateResponse, openapi_extra=openapi_body(GenerateRequest))
async def generate(request: Request) -> Response:
    """Return the text that the model writes after a prompt."""
    return JSONResponse(await _answer(request, await read_body(request, GenerateRequest)))


@router.post("/generate_stream", response_class=Response, responses=_STREAM, openapi_extra=openapi_body(GenerateRequest))
async def generate_stream(request: Request) -> Response:
    """Return the tokens that the model writes after a prompt, as server-sent events."""
    return await _stream(request, await read_body(request, GenerateRequest))


@router.post("/", response_model=list[GenerateResponse], responses=_EITHER, openapi_extra=openapi_body(CompatGenerateRequest))
async def generate_either(request: Request) -> Response:
    """Answer as ``/generate_stream`` does for ``stream``, and otherwise a list of one answer."""
    body = await read_body(request, CompatGenerateRequest)
    return await _stream(request, body) if body.stream else JSONResponse([await _answer(request, body)])


@router.get("/info", response_model=Info)
async def info(request: Request) -> JSONResponse:
    """Return the default model and the limits of requests.

    A model that is not loaded has no length yet.
    """
    state = state_of(request)
    model = state.models.entries()[0]
    length = model.max_model_len
    return JSONResponse(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": state.options.max_requests,
            "max_best_of": 1,
            "max_input_tokens": length and length - 1,
            "max_total_tokens": length,
            "max_client_batch_size": 1,
            "router": "hasten",
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


async def _answer(request: Request, body: GenerateRequest) -> dict[str, Any]:
    async with open_call(request, body.model) as call:

        async def work() -> dict[str, Any]:
            return await (await Generation.open(call, body, streams=False)).answer()

        return await until_disconnect(request, work())


async def _stream(request: Request, body: GenerateRequest) -> Response:
    async with AsyncExitStack() as stack:
        call = await stack.enter_async_context(open_call(request, body.model))
        generation = await until_disconnect(request, Generation.open(call, body, streams=True))
        return await event_response(generation.events(), stack)
