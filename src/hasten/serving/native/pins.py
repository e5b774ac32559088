"""``/pin_kv`` and ``/unpin_kv``: prefixes that stay in the prefix cache, of the caller's own tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from hasten.entrypoints.request_limits import MAX_PIN_SECONDS
from hasten.serving.call import open_call
from hasten.serving.event_stream import until_disconnect
from hasten.serving.json_body import read_body
from hasten.serving.native.request_body import ModelRequestBody, Salt, Text, as_prompt
from hasten.serving.openapi_body import openapi_body

router = APIRouter()


class PinRequest(ModelRequestBody):
    prompt: Text
    seconds: Annotated[float, Field(gt=0, le=MAX_PIN_SECONDS, description="After the last request that began with the prompt.")]
    cache_salt: Salt = ""


class PinResponse(BaseModel):
    model: str
    num_tokens: int = Field(description="Tokens of the prompt that fill blocks.")
    num_blocks: int
    seconds: float
    expires_in: float = Field(description="Seconds until it ends if no request uses it.")
    hits: int


class UnpinRequest(ModelRequestBody):
    prompt: Text
    cache_salt: Salt = ""


class UnpinResponse(BaseModel):
    model: str
    removed: int = Field(description="Pins that ended, 0 or 1.")


@router.post("/pin_kv", response_model=PinResponse, openapi_extra=openapi_body(PinRequest))
async def pin_kv(request: Request) -> JSONResponse:
    """Keep the KV blocks of a prompt in the prefix cache, and compute them if they are missing."""
    body = await read_body(request, PinRequest)
    async with open_call(request, body.model) as call:
        salt = call.caller.cache_salt(body.cache_salt)
        pin = await until_disconnect(request, call.llm.pin_kv(as_prompt(body.prompt), body.seconds, cache_salt=salt))
        return JSONResponse({"model": call.model.name, **pin})


@router.post("/unpin_kv", response_model=UnpinResponse, openapi_extra=openapi_body(UnpinRequest))
async def unpin_kv(request: Request) -> JSONResponse:
    """End the pin of a prompt. Its blocks stay cached until others need their place.

    ``/reset_prefix_cache`` ends all pins.
    """
    body = await read_body(request, UnpinRequest)
    async with open_call(request, body.model) as call:
        salt = call.caller.cache_salt(body.cache_salt)
        removed = await until_disconnect(request, call.llm.unpin_kv(as_prompt(body.prompt), cache_salt=salt))
        return JSONResponse({"model": call.model.name, "removed": removed})
