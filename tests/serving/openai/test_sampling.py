"""From the fields of a request to ``SamplingParams``: defaults, limits of tokens, beams, and the field that an error names."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.serving.live_server import live_server
from tests.serving.openai.answers import post

from hasten import SamplingParams
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.api_error import ApiError
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.openai.completion_request import CompletionRequest
from hasten.serving.openai.sampling import check_sampling, read_max_tokens, read_sampling
from hasten.serving.openai.surface import openai_surface
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState

DEFAULTS = SamplingParams(temperature=0.7, top_k=20, top_p=0.9, stop_token_ids=(3, 4))


def read(defaults: SamplingParams = DEFAULTS, max_tokens: int = 9, logprobs: int | None = None, **fields: Any) -> SamplingParams:
    body = CompletionRequest(prompt="a", **fields)
    check_sampling(body, ServerOptions())
    return read_sampling(body, defaults, max_tokens=max_tokens, logprobs=logprobs, renamed={"max_tokens": "max_completion_tokens"})


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        ({"temperature": 0.1, "top_p": 0.5, "min_p": 0.1}, {"temperature": 0.1, "top_p": 0.5, "min_p": 0.1}),
        ({"top_k": -1}, {"top_k": None}),
        ({"top_k": 0}, {"top_k": None}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 0}, {"seed": 0}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop_token_ids": [4, 5]}, {"stop_token_ids": (3, 4, 5)}),
        ({"logit_bias": {"7": 1}}, {"logit_bias": {7: 1.0}}),
        ({"thinking_token_budget": -1}, {"thinking_token_budget": None}),
        ({"thinking_token_budget": 0}, {"thinking_token_budget": 0}),
        (
            {"use_beam_search": True, "n": 3, "length_penalty": 0.5},
            {"n": 3, "beam_width": 3, "temperature": 0.0, "top_k": None, "top_p": 1.0, "length_penalty": 0.5},
        ),
        (
            {"use_beam_search": True, "beam_width": 4, "temperature": 1},
            {"beam_width": 4, "temperature": 1.0, "top_k": None, "top_p": 1.0},
        ),
        ({"exit_rule": "fixed", "exit_layer": 2}, {"exit_rule": "fixed", "exit_layer": 2}),
        ({"acceptance": "typical", "posterior_alpha": 0.2}, {"acceptance": "typical", "posterior_alpha": 0.2}),
    ],
)
def test_absent_fields_have_the_models_defaults(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    assert read(**fields) == DEFAULTS.replace(max_tokens=9, **changes)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_p": 2.0, "temperature": -1.0}, "temperature"),
        ({"use_beam_search": True, "temperature": 0.5}, "temperature"),
        ({"use_beam_search": True, "exit_rule": "fixed", "exit_layer": 1}, "exit_rule"),
        ({"exit_layer": 1}, "exit_layer"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"posterior_alpha": 0.2}, "posterior_alpha"),
        ({"max_tokens": 0}, "max_completion_tokens"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**{"max_tokens": 9, **fields})
    assert caught.value.param == param and caught.value.status == 400


@pytest.mark.parametrize(
    ("given", "of_the_model", "min_tokens", "room", "expected"),
    [
        (None, None, None, 2000, 1024),
        (None, None, None, 100, 100),
        (None, 50, None, 2000, 50),
        (None, 3000, None, 2000, 2000),
        (None, None, 1500, 2000, 1500),
        (7, 50, None, 2000, 7),
        (2000, None, None, 2000, 2000),
        (0, None, None, 2000, 0),  # refused later, with what is allowed
    ],
)
def test_limits_of_tokens(given: int | None, of_the_model: int | None, min_tokens: int | None, room: int, expected: int) -> None:
    body = CompletionRequest(prompt="a", min_tokens=min_tokens)
    assert read_max_tokens(given, "max_tokens", body, 10, SamplingParams(max_tokens=of_the_model), room, 1024) == expected


def test_more_tokens_than_have_room_are_refused_with_numbers() -> None:
    with pytest.raises(ApiError, match="10 tokens and max_tokens is 91, together 101; allowed: up to 100") as caught:
        read_max_tokens(91, "max_tokens", CompletionRequest(prompt="a"), 10, SamplingParams(), 90, 1024)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")


def test_a_request_may_pass_the_result_cache_by() -> None:
    llm = AsyncLLM("demo", threads=1, kv_cache_memory="8MiB", max_model_len=128, result_cache="memory:")
    state = ServerState(ServerOptions(default_max_tokens=3), SingleModel("demo", llm))
    with live_server(create_app(state, [openai_surface()])) as url, httpx.Client(base_url=url, timeout=60) as client:
        for path, body in (
            ("completions", {"prompt": "def f("}),
            ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ):
            before = asyncio.run(llm.stats())["result_cache"]
            answers = [post(client, path, temperature=0, result_cache=each, **body) for each in (False, False, True, True)]
            after = asyncio.run(llm.stats())["result_cache"]
            assert {name: after[name] - before[name] for name in ("hits", "misses")} == {"hits": 1, "misses": 1}
            assert [answer["usage"]["completion_tokens"] for answer in answers] == [3] * 4
    asyncio.run(llm.close())


def test_an_engine_in_another_process_gives_the_same_answers(client: httpx.Client) -> None:
    llm = AsyncLLM("demo", transport="process", threads=1, kv_cache_memory="8MiB", max_model_len=512)
    state = ServerState(ServerOptions(), SingleModel("demo", llm))
    asked: list[tuple[str, dict[str, Any]]] = [
        ("completions", {"prompt": ["def f(", "import"], "n": 2, "echo": True, "logprobs": 2}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 1}),
    ]
    try:
        with live_server(create_app(state, [openai_surface()])) as url, httpx.Client(base_url=url, timeout=60) as other:
            for path, body in asked:
                settings = {**body, "seed": 3, "temperature": 1, "max_tokens": 4}
                assert post(other, path, **settings)["choices"] == post(client, path, **settings)["choices"]
            assert "outside" in other.post("/v1/completions", json={"prompt": [10**6]}).json()["error"]["message"]
    finally:
        asyncio.run(llm.close())
