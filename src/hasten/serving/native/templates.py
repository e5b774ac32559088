"""Prompt templates by name: ``render_template``, and the routes that list and render them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from hasten.core.errors import InvalidOption, InvalidRequest
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.template import PromptTemplate, Value
from hasten.serving.api_error import ApiError, ErrorKind, invalid
from hasten.serving.json_body import read_body
from hasten.serving.openapi_body import openapi_body
from hasten.serving.strict_body import StrictBody

router = APIRouter()
Variables = Annotated[
    dict[str, str | list[dict[str, str]]],
    Field(max_length=64, description="A text, or a list of examples, for each variable of the template without a default."),
]


class TemplateFacts(BaseModel):
    name: str
    language: str
    description: str
    variables: list[str] = Field(description="That a request must give.")
    defaults: dict[str, str] = Field(description="Of the variables that may be left out.")


class TemplatesResponse(BaseModel):
    data: list[TemplateFacts]


class RenderRequest(StrictBody):
    name: str
    variables: Variables = Field(default_factory=dict)


class RenderResponse(BaseModel):
    name: str
    prompt: str = Field(description="The system text, if any, a blank line, and the rendered text.")
    messages: list[dict[str, str]] = Field(description="The same as a conversation: a system message, if any, and a user's.")


async def render_template(name: str, variables: Mapping[str, Value]) -> str:
    """Return the prompt that a template of hasten gives with these variables.

    Raises ``ApiError``: NOT_FOUND for an unknown name, INVALID_REQUEST for variables that are missing, not read or no texts.
    """
    return await asyncio.to_thread(_render, name, variables)


async def render_messages(name: str, variables: Mapping[str, Value]) -> list[dict[str, str]]:
    """Return the conversation that a template gives; see ``render_template``."""
    return await asyncio.to_thread(_messages, name, variables)


@router.get("/v1/templates", response_model=TemplatesResponse)
async def list_templates(request: Request) -> JSONResponse:
    """Return the prompt templates that ship with hasten."""
    return JSONResponse({"data": await asyncio.to_thread(_list)})


@router.post("/v1/templates/render", response_model=RenderResponse, openapi_extra=openapi_body(RenderRequest))
async def render(request: Request) -> JSONResponse:
    """Return the prompt of a template with variables. No model reads it."""
    body = await read_body(request, RenderRequest)
    prompt = await render_template(body.name, body.variables)
    messages = await render_messages(body.name, body.variables)
    return JSONResponse({"name": body.name, "prompt": prompt, "messages": messages})


@functools.cache
def _library() -> TemplateLibrary:
    return TemplateLibrary()


def _find(name: str) -> PromptTemplate:
    try:
        return _library().find(name)
    except InvalidOption as error:
        raise ApiError(ErrorKind.NOT_FOUND, str(error), param="name", code="template_not_found") from None


def _render(name: str, variables: Mapping[str, Value]) -> str:
    try:
        return _find(name).render(variables)
    except InvalidRequest as error:
        raise invalid(str(error), param="variables") from None


def _messages(name: str, variables: Mapping[str, Value]) -> list[dict[str, str]]:
    try:
        return _find(name).messages(variables)
    except InvalidRequest as error:
        raise invalid(str(error), param="variables") from None


def _list() -> list[dict[str, object]]:
    return [
        {
            "name": template.name,
            "language": template.language,
            "description": template.description,
            "variables": list(template.variables),
            "defaults": dict(template.defaults),
        }
        for template in (entry.template for entry in _library().entries.values())
    ]
