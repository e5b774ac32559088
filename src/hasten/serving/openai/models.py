"""``GET /v1/models``: the models of the server."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from hasten.serving.models.base import ModelEntry
from hasten.serving.models.single import unknown_model
from hasten.serving.server_state import state_of


async def list_models(request: Request) -> dict[str, Any]:
    """Return all models, loaded or not; the default one first."""
    return {"object": "list", "data": [_written(entry) for entry in state_of(request).models.entries()]}


async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    entries = state_of(request).models.entries()
    found = next((entry for entry in entries if entry.name == model), None)
    if found is None:
        raise unknown_model(model, [entry.name for entry in entries])
    return _written(found)


def _written(entry: ModelEntry) -> dict[str, Any]:
    """Return OpenAI's fields, and vLLM's ``root``, ``parent`` and ``max_model_len``.

    The last is null until the model is loaded for the first time.
    """
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "hasten",
        "root": entry.path,
        "parent": None,
        "max_model_len": entry.max_model_len,
    }
