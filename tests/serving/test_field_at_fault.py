"""How an error names the field at fault."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hasten.serving.api_error import ApiError
from hasten.serving.json_body import parse_body

Id = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text"]
    text: str


class Other(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["other"]
    size: int


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    prompt: Annotated[str, AfterValidator(str.strip)] | list[Id] | None = None
    texts: list[Text | list[Id]] = []
    parts: list[Annotated[Part | Other, Field(discriminator="type")]] = []
    bias: dict[str, float] = {}
    count: int = 0


@pytest.mark.parametrize(
    ("body", "path", "told"),
    [
        ({"prompt": 5}, "prompt", "valid string"),
        ({"prompt": ["a"]}, "prompt.0", "valid integer"),
        ({"prompt": [1, -1]}, "prompt.1", "greater than or equal to 0"),
        ({"texts": [""]}, "texts.0", "at least 1 character"),
        ({"texts": ["a", [1, "b"]]}, "texts.1.1", "valid integer"),
        ({"parts": [{"type": "text"}]}, "parts.0.text.text", "required"),
        ({"parts": [{"type": "other", "size": "a"}]}, "parts.0.other.size", "valid integer"),
        ({"parts": [{"type": "text", "text": "a", "evil": 1}]}, "parts.0.text.evil", "not permitted"),
        ({"parts": [{"type": "text", "text": {"a": 1}}]}, "parts.0.text.text", "valid string"),
        ({"prompt": {"a": 1}}, "prompt", "valid string"),
        ({"parts": [{"type": "odd"}]}, "parts.0", "odd"),
        ({"parts": 5}, "parts", "valid list"),
        ({"bias": {"1": "a"}}, "bias.1", "valid number"),
        ({"count": "5", "prompt": [[]]}, "prompt.0", "valid integer"),
        ({"evil": 1}, "evil", "not permitted"),
    ],
)
def test_the_field_is_named_without_types(body: dict[str, Any], path: str, told: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(json.dumps(body).encode(), Body, 64)
    assert caught.value.param == path
    assert caught.value.message.startswith(f"{path}: ")
    assert told in caught.value.message
