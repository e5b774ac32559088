"""A check of a body that ends at the first fault, whatever the number of faults."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten.serving.anthropic.messages_request import MessagesRequest
from hasten.serving.api_error import ApiError
from hasten.serving.bounded_faults import BoundedFaults
from hasten.serving.json_body import MAX_FIELDS, parse_body
from hasten.serving.native.scoring import ScoreRequest
from hasten.serving.openai.completion_request import CompletionRequest

NUMBER = 100_000


class Body(BoundedFaults, BaseModel):
    model_config = ConfigDict(strict=True)
    type: str = "list"
    ids: list[Annotated[int, Field(ge=0)]] = []
    texts: str | list[str | list[int]] = []
    weights: dict[str, float] = {}
    inner: list[Body] = []


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (Body, {"ids": [-1] * NUMBER}),
        (Body, {"texts": [None] * NUMBER}),
        (Body, {"weights": dict.fromkeys(map(str, range(NUMBER)), "a")}),
        (Body, {"inner": [{"ids": [-1] * NUMBER}] * 2}),
        (ScoreRequest, {"prompt": [-1] * NUMBER, "continuations": [None] * NUMBER}),
        (
            CompletionRequest,
            {"prompt": "a", "stop_token_ids": ["a"] * NUMBER, "logit_bias": dict.fromkeys(map(str, range(NUMBER)))},
        ),
        (MessagesRequest, {"model": "a", "max_tokens": 1, "messages": [5] * NUMBER, "stop_sequences": [5] * NUMBER}),
    ],
)
def test_faults_are_few(schema: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    assert 1 <= caught.value.error_count() <= 8


def test_what_is_right_passes() -> None:
    body = {"ids": [0, 1], "texts": ["a", [1]], "weights": {"a": 1.5}, "inner": [{"ids": [2]}]}
    assert Body.model_validate(body).inner[0].ids == [2]


def test_a_body_with_fields_without_end_is_refused() -> None:
    body = {"ids": [], **{f"a{i}": 1 for i in range(MAX_FIELDS)}}
    with pytest.raises(ApiError, match="1001 fields"):
        parse_body(json.dumps(body).encode(), Body, 64)
