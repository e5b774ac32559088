"""``/cache``, ``/reset_prefix_cache`` and ``/reset_result_cache``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from hasten.serving.api_error import invalid
from hasten.serving.models.served_model import ServedModel
from hasten.serving.models.single import unknown_model
from hasten.serving.native.administration import is_administrator, require_administrator
from hasten.serving.native.request_body import ModelName
from hasten.serving.server_state import state_of

router = APIRouter()
_OWN_PIN_COUNTS = ("pinned_blocks", "set", "refreshed", "hits", "expired", "evicted", "dropped", "removed", "refused")
_RESULT_COUNTS = ("hits", "misses", "shared", "hit_rate", "stored", "dropped", "damaged", "unwritten", "passed")


class CacheResponse(BaseModel):
    """Counters since the model was loaded, of all tenants together.

    Only an administrator gets the list of pins.
    """

    model: str
    is_loaded: bool
    kv: dict[str, Any] | None = Field(default=None, description="Blocks of the KV cache: held, cached and free ones.")
    prefix_cache: dict[str, Any] | None = Field(default=None, description="Prompt tokens that were looked up, and those found.")
    pins: dict[str, Any] | None = Field(default=None, description="Counts of pinned prefixes and blocks.")
    result_cache: dict[str, Any] | None = Field(default=None, description="Counts of lookups; null without a result cache.")


class ResetResponse(BaseModel):
    model: str
    removed: int = Field(description="Blocks of the prefix cache, or results.")


@router.get("/cache", response_model=CacheResponse)
async def cache(request: Request, model: ModelName = None) -> JSONResponse:
    """Return what the prefix cache, the pins and the result cache of a model hold.

    A model that is not loaded stays so.
    """
    async with _use_loaded(request, model) as (name, served):
        if served is None:
            return JSONResponse({"model": name, "is_loaded": False})
        found = await served.llm.stats()
    pins, results = found["pins"], found["result_cache"]
    if not is_administrator(request):  # a pin or a path tells what another tenant or the server's owner does
        pins = {key: pins[key] for key in _OWN_PIN_COUNTS}
        results = results and {key: results[key] for key in _RESULT_COUNTS}
    shown = {"kv": found["kv"], "prefix_cache": found["prefix_cache"], "pins": pins, "result_cache": results}
    return JSONResponse({"model": name, "is_loaded": True, **shown})


@router.post("/reset_prefix_cache", response_model=ResetResponse)
async def reset_prefix_cache(
    request: Request,
    model: ModelName = None,
    reset_running_requests: Annotated[bool, Query(description="Not supported: running requests keep their blocks.")] = False,
    reset_external: Annotated[bool, Query(description="Not supported: there is no external cache.")] = False,
) -> JSONResponse:
    """Drop all cached KV blocks that no running request holds, and all pins.

    It concerns all tenants, so the caller must be an administrator.
    """
    require_administrator(request)
    for name, value in (("reset_running_requests", reset_running_requests), ("reset_external", reset_external)):
        if value:
            raise invalid(f"{name} is not supported", param=name)
    async with _use_loaded(request, model) as (name, served):
        removed = 0 if served is None else await served.llm.reset_prefix_cache()
    return JSONResponse({"model": name, "removed": removed})


@router.post("/reset_result_cache", response_model=ResetResponse)
async def reset_result_cache(request: Request, model: ModelName = None) -> JSONResponse:
    """Drop all results that the model's result cache holds.

    It concerns all tenants, so the caller must be an administrator.
    """
    require_administrator(request)
    async with _use_loaded(request, model) as (name, served):
        if served is not None and (await served.llm.stats())["result_cache"] is None:
            raise invalid(f"the model {name!r} has no result cache", param="model", code="no_result_cache")
        removed = 0 if served is None else await served.llm.reset_result_cache()
    return JSONResponse({"model": name, "removed": removed})


@asynccontextmanager
async def _use_loaded(request: Request, model: str | None) -> AsyncIterator[tuple[str, ServedModel | None]]:
    """Yield the name of a model, and the model, or None if it is not loaded.

    It takes no place in the queue. Raises ``ApiError`` for an unknown name.
    """
    models = state_of(request).models
    entries = models.entries()
    entry = next((entry for entry in entries if model in (None, entry.name)), None)
    if entry is None:
        raise unknown_model(model, [each.name for each in entries])
    if not entry.is_loaded:
        yield entry.name, None
        return
    async with models.use(entry.name) as served:
        yield entry.name, served
