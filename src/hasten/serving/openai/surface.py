"""``openai_surface``: OpenAI's API as the server mounts it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from hasten.serving.openai.chat import create_chat_completion
from hasten.serving.openai.chat_request import ChatRequest
from hasten.serving.openai.completion_request import CompletionRequest
from hasten.serving.openai.completions import create_completion
from hasten.serving.openai.errors import write_error
from hasten.serving.openai.models import list_models, retrieve_model
from hasten.serving.openapi_body import event_stream, openapi_body
from hasten.serving.surface import Surface

_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
# OpenAI's paths, those that the server has not too, whose errors its clients read.
_PATHS = tuple(
    f"/v1/{name}"
    for name in (
        "models",
        "completions",
        "chat/",
        "responses",
        "embeddings",
        "audio/",
        "images/",
        "files",
        "batches",
        "moderations",
    )
)
_OBJECT: dict[str, Any] = {"type": "object"}


def openai_surface() -> Surface:
    """Return the routes of models, completions and chat completions, and how they write errors."""
    router = APIRouter(tags=["OpenAI"])
    router.add_api_route("/v1/models", list_models, methods=["GET"], responses=_responses(401))
    router.add_api_route("/v1/models/{model:path}", retrieve_model, methods=["GET"], responses=_responses(401, 404, 422))
    for path, route, body in (
        ("/v1/completions", create_completion, CompletionRequest),
        ("/v1/chat/completions", create_chat_completion, ChatRequest),
    ):
        router.add_api_route(
            path,
            route,
            methods=["POST"],
            response_model=None,
            openapi_extra=openapi_body(body),
            responses=_responses(400, 401, 404, 408, 413, 429, 500, 503, has_stream=True),
        )
    return Surface("openai", router, _PATHS, write_error)


def _responses(*statuses: int, has_stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says about the answers of a route."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": "an error", "content": {"application/json": {"schema": _ERROR}}} for status in statuses
    }
    content: dict[str, Any] = {"application/json": {"schema": _OBJECT}}
    if has_stream:
        content |= event_stream()
    return found | {200: {"description": "the answer", "content": content}}
