"""Requests of TGI at the limits of each field, and what is not supported."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from hasten import SamplingParams
from hasten.serving.tgi.generate_request import GenerateParameters

PROMPT = "def f("
LIMITS: dict[str, tuple[list[Any], list[Any]]] = {  # of each field: what is accepted, and what is refused
    "best_of": ([1], [0, 2, "1"]),
    "temperature": ([0.01, 1, 5.0], [0, -1, "1", True]),
    "repetition_penalty": ([0.01, 2], [0, -1, 2e9]),
    "frequency_penalty": ([-2, 0, 2], [-2.1, 2.1]),
    "top_k": ([1, 10_000], [0, -1, 1.5]),
    "top_p": ([0.01, 1], [0, 1.01]),
    "typical_p": ([0.01, 1], [0, 1.01]),
    "do_sample": ([True, False], [1, "true"]),
    "max_new_tokens": ([1, 500], [0, -1, 509, 2**40]),
    "return_full_text": ([True, False], ["no"]),
    "stop": ([[], ["a"], ["a"] * 16, ["a" * 256]], ["a", [""], ["a"] * 17, ["a" * 257], [5]]),
    "truncate": ([1, 511], [0, -1, 512]),
    "watermark": ([False], [True, 0]),
    "details": ([True, False], ["yes"]),
    "seed": ([0, 2**63 - 1], [-1, 2**63, 1.5]),
    "top_n_tokens": ([0, 20], [-1, 21]),
    "adapter_id": ([""], ["lora", 5]),
    "ignore_eos_token": ([True, False], [0]),
    "grammar": (
        [{"type": "regex", "value": "a"}, {"type": "json", "value": {}}, {"type": "json_schema", "value": {"schema": {}}}],
        [
            {"type": "lark", "value": "a"},
            {"type": "regex"},
            {"type": "regex", "value": {}},
            {"type": "json", "value": 5},
            {"type": "json", "value": "{"},
            {"type": "json_schema", "value": {}},
            {"type": "json_schema", "value": {"schema": {}, "strict": True}},
            {"type": "regex", "value": "("},
            "a",
        ],
    ),
}
REFUSED = [(name, value) for name, (_, refused) in LIMITS.items() for value in refused]


def test_each_setting_reaches_the_engine() -> None:
    given = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.8,
        "typical_p": 0.7,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.4,
        "seed": 3,
        "stop": ["a", "b"],
        "ignore_eos_token": True,
        "top_n_tokens": 4,
    }
    expected = SamplingParams(
        temperature=0.5,
        top_k=7,
        top_p=0.8,
        typical_p=0.7,
        repetition_penalty=1.5,
        frequency_penalty=0.4,
        seed=3,
        stop=("a", "b"),
        ignore_eos=True,
        logprobs=4,
        max_tokens=9,
        include_stop_str_in_output=True,
    )
    parameters = GenerateParameters.model_validate(given)
    assert parameters.sampling_params(9, has_logprobs=True) == expected
    assert parameters.sampling_params(9, has_logprobs=False) == expected.replace(logprobs=None)
    greedy = SamplingParams(temperature=0, max_tokens=9, include_stop_str_in_output=True)
    assert GenerateParameters().sampling_params(9, has_logprobs=False) == greedy
    assert GenerateParameters(do_sample=True).sampling_params(9, has_logprobs=False) == greedy.replace(temperature=1)


def test_every_field_is_in_the_table() -> None:
    assert GenerateParameters.model_fields.keys() == LIMITS.keys() | {"decoder_input_details"}


@pytest.mark.parametrize("name", LIMITS)
def test_values_at_the_limits_are_accepted(tgi: httpx.Client, name: str) -> None:
    for value in [None, *LIMITS[name][0]]:
        parameters = {"max_new_tokens": 1, **({"seed": 1} if name == "do_sample" else {}), name: value}
        if name == "max_new_tokens":
            parameters["stop"] = ["\n", "e", "a", "i", "t"]
        response = tgi.post("/generate", json={"inputs": PROMPT, "parameters": parameters})
        assert response.status_code == 200, (value, response.text)


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=[f"{name}={str(value)[:40]}" for name, value in REFUSED])
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_values_beyond_are_refused_and_named(tgi: httpx.Client, path: str, name: str, value: Any) -> None:
    response = tgi.post(path, json={"inputs": PROMPT, "parameters": {name: value}})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    shown = {"stop": "stop", "grammar": ""}.get(name, name)
    assert shown in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 422, "inputs"),
        ({"inputs": ""}, 422, "inputs"),
        ({"inputs": ["x"]}, 422, "inputs"),
        ({"inputs": "x", "parameters": {"decoding": 1}}, 422, "decoding"),
        ({"inputs": "x", "options": {}}, 422, "options"),
        ({"inputs": "x", "parameters": []}, 422, "parameters"),
        ({"inputs": "x", "model": "other"}, 404, "other"),
        ({"inputs": "x y " * 500}, 422, "context"),
        ({"inputs": "x", "parameters": {"max_new_tokens": 511}}, 422, "max_new_tokens is 511; allowed: 512 in all"),
    ],
)
def test_a_wrong_body_is_refused(tgi: httpx.Client, body: dict[str, Any], status: int, named: str) -> None:
    response = tgi.post("/generate", json=body)
    assert (response.status_code, response.json().keys()) == (status, {"error", "error_type"})
    assert named in response.json()["error"]
    assert response.headers["x-request-id"]


def test_a_stream_has_no_prefill_and_generate_no_stream(tgi: httpx.Client) -> None:
    response = tgi.post("/generate_stream", json={"inputs": PROMPT, "parameters": {"decoder_input_details": True}})
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")
    assert "stream" in tgi.post("/generate", json={"inputs": PROMPT, "stream": True}).json()["error"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not JSON"), (b"[]", "not a JSON object"), (rb'{"inputs": "\ud800"}', "surrogate")]
)
def test_what_is_no_request_is_refused(tgi: httpx.Client, content: bytes, message: str) -> None:
    response = tgi.post("/", content=content)
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")
    assert message in response.json()["error"]
