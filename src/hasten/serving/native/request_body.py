"""``ModelRequestBody``: a body that names a model, and the types of its fields."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field

from hasten.entrypoints.input_processor import MAX_SALT, Prompt
from hasten.serving.strict_body import StrictBody

MAX_TOKEN_IDS = 2**20  # of a text given as token ids; the context of a model is shorter

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS)]
Text = str | TokenIds  # a text, or its token ids
_MODEL = "Name of a model of this server; the default one if it is left out."
ModelName = Annotated[str | None, Query(description=_MODEL)]
Salt = Annotated[str, Field(max_length=MAX_SALT, description="Requests with other salts share no cached blocks with this one.")]


class ModelRequestBody(StrictBody):
    model: str | None = Field(default=None, description=_MODEL)


def as_prompt(text: Text) -> Prompt:
    """Return the prompt as the engine takes it."""
    return text if isinstance(text, str) else {"prompt_token_ids": text}
