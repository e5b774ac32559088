"""Every field of the two bodies: a valid and an invalid value, what is refused, and which settings have no field."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx
import jsonschema
import pytest
from tests.serving.openai.answers import post, refusal

from hasten import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.serving.api_error import ApiError
from hasten.serving.openai.chat_request import ChatRequest
from hasten.serving.openai.completion_request import CompletionRequest
from hasten.serving.openai.harmless_fields import HarmlessFields
from hasten.serving.openai.messages import MESSAGES_SCHEMA, read_messages
from hasten.serving.openai.output_form import StructuredOutputsFields
from hasten.serving.openai.refused_fields import REFUSED
from hasten.serving.openai.sampling import SAME
from hasten.serving.openapi_body import openapi_body

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
BASE: dict[str, dict[str, Any]] = {"completions": {"prompt": "def f("}, "chat/completions": {"messages": MESSAGES}}
SCHEMAS = {"completions": CompletionRequest, "chat/completions": ChatRequest}
# Of each field: values at the bounds of what is valid, values just beyond them, and other fields that it needs.
FIELDS: dict[str, tuple[list[Any], list[Any], dict[str, Any]]] = {
    "model": (["demo"], [5, ["demo"]], {}),
    "stream": ([False, True], ["yes", 1], {}),
    "stream_options": (
        [{}, {"include_usage": True}, {"include_usage": None, "include_obfuscation": True}],
        [True, {"usage": 1}],
        {"stream": True},
    ),
    "n": ([1, 8], [0, 9, 1.0, "1", True], {}),
    "temperature": ([0, 2, 0.5], [-0.1, "1", True], {}),
    "top_p": ([1, 0.001], [0, 1.01], {}),
    "frequency_penalty": ([-2, 2], [-2.1, 2.1], {}),
    "presence_penalty": ([-2, 2], [-2.1, 2.1], {}),
    "logit_bias": (
        [{}, {"0": -100, "8191": 100}],
        [{"0": 101}, {"a": 1}, {"8192": 1}, {"-1": 1}, {"01": 1}, {"\u0661": 1}, [1]],
        {},
    ),
    "seed": ([-1, 0, 2**63 - 1], [-2, 2**63, 1.5], {}),
    "stop": (["a", [], ["a", "b"]], ["", [""], [5], 5, ["a"] * 17, "a" * 257], {}),
    "max_tokens": ([1, 3], [-1, 10**6, 10**39, 1.5], {}),
    "response_format": ([{"type": "text"}], [{"type": "xml"}, {}, "text"], {}),
    "top_k": ([-1, 0, 1, 10**6], [-2, 1.5], {}),
    "min_p": ([0, 1], [-0.1, 1.1], {}),
    "repetition_penalty": ([0.1, 2], [0, -1], {}),
    "length_penalty": ([0, 2], [1001], {"use_beam_search": True}),
    "use_beam_search": ([False, True], ["no"], {}),
    "min_tokens": ([0, 3], [-1, 4], {"max_tokens": 3}),
    "ignore_eos": ([False, True], [0], {}),
    "stop_token_ids": ([[], [0, 8191]], [[-1], [8192], 5, [1.5]], {}),
    "include_stop_str_in_output": ([False, True], ["x"], {}),
    "skip_special_tokens": ([False, True], ["x"], {}),
    "bad_words": ([[], ["a"]], [[""], "a", [5], ["a"] * 65], {}),
    "allowed_token_ids": ([[5], [5, 6]], [[], [8192], [-1]], {}),
    "structured_outputs": ([{"regex": "a"}], [{}, {"regex": "("}, {"pattern": "a"}, "a"], {}),
    "thinking_token_budget": ([-1], [-2, 1.5, 0], {}),  # the demo has no thoughts
    "prompt_logprobs": ([0, 20], [-1, 21], {}),
    "return_token_ids": ([True], [1], {}),
    "return_tokens_as_token_ids": ([True], [1], {}),
    "priority": ([0], [1, 1.5], {}),  # this engine does not order by priority
    "cache_salt": (["a", "a" * 1024], ["", "a" * 1025, 5], {}),
    "typical_p": ([1, 0.1], [0, 1.1], {}),
    "no_repeat_ngram_size": ([1, 9], [0], {}),
    "bad_words_ids": ([[], [[5], [6, 7]]], [[[]], [5], [[8192]]], {}),
    "beam_width": ([1, 8], [0, 9], {"use_beam_search": True}),
    "early_stopping": ([True, False, "never"], ["always", 2], {"use_beam_search": True}),
    "acceptance": (["exact", "rejection", "typical"], ["lossy"], {}),
    "posterior_threshold": ([0.1, 1], [0, 1.1], {"acceptance": "typical"}),
    "posterior_alpha": ([0.1, 1], [0, 1.1], {"acceptance": "typical"}),
    "exit_rule": (["none"], ["early"], {}),
    "exit_layer": ([], [0, 1, 99], {}),  # the demo has no exits
    "exit_threshold": ([], [3, 0.5], {}),
    "exit_tolerance": ([], [0, 0.1], {}),
    "exit_decay": ([4.0], [-1, 5.0], {}),
    "user": (["someone"], [5], {}),
    "safety_identifier": (["someone"], [5], {}),
    "metadata": ([{"a": "b"}], ["a"], {}),
    "store": ([False], [True], {}),
    "service_tier": (["auto", "default"], ["flex", "priority"], {}),
    "prompt_cache_key": (["a"], [5], {}),
    "prompt_cache_retention": (["in_memory", "24h"], ["48h"], {}),
    "prompt_cache_options": ([{"mode": "implicit"}], ["implicit"], {}),
    "prediction": ([{"type": "content", "content": "a"}], ["a"], {}),
    "verbosity": (["medium"], ["low", "high"], {}),
    "modalities": ([["text"]], [["audio"], ["text", "audio"], "text"], {}),
    "request_id": (["a"], [5], {}),
    "session_id": (["a"], [5], {}),
    "stream_interval": ([1, 10], ["a"], {}),
    "spaces_between_special_tokens": ([True], [False], {}),
    "return_mm_kwargs": ([True, False], [1], {}),
    "return_token_offsets": ([False], [True], {}),
    "result_cache": ([True, False], [1], {}),
}
OF_ONE: dict[str, dict[str, tuple[list[Any], list[Any], dict[str, Any]]]] = {
    "completions": {
        "prompt": (["a", [5], ["a"], [[5]]], [5, [], {}], {}),
        "echo": ([True, False], [1], {}),
        "logprobs": ([0, 20], [-1, 21, True], {}),
        "best_of": ([1, 2], [3, 0], {"n": 2}),
        "add_special_tokens": ([True, False], [1], {}),
        "max_tokens": ([1], [0], {}),
    },
    "chat/completions": {
        "messages": ([MESSAGES], [[], "a", [5], [{"role": "user"}], MESSAGES * 9], {}),
        "max_completion_tokens": ([1], [0, 10**6], {}),
        "logprobs": ([True, False], [1], {}),
        "top_logprobs": ([0, 20], [-1, 21], {"logprobs": True}),
        "tools": (
            [[], [TOOL]],
            [[5], [{"type": "custom"}], "a", [TOOL, TOOL], [{"type": "function", "function": {"name": "a b"}}]],
            {},
        ),
        "tool_choice": (["none", "auto"], ["any", {"type": "function", "function": {"name": "g"}}, {}, 5], {"tools": [TOOL]}),
        "parallel_tool_calls": ([True, False], [1], {}),
        "reasoning_effort": (["medium"], ["high", "none", "extreme"], {}),
        "include_reasoning": ([True, False], [1], {}),
        "add_generation_prompt": ([True, False], [1], {}),
        "continue_final_message": ([True], [1], {"messages": [*MESSAGES, {"role": "assistant", "content": "a"}]}),
        "chat_template": ([], ["{{ 1 }}"], {}),
        "chat_template_kwargs": ([{}], [{"enable_thinking": True}, {"messages": []}, "a"], {}),
        "documents": ([[]], [[{"text": "a"}], "a"], {}),
        "return_prompt_text": ([True], [1], {}),
        "echo": ([False], [True], {}),
        "add_special_tokens": ([False], [True], {}),
    },
}
NESTED = {
    "stream_options",
    "response_format",
    "structured_outputs",
    "logit_bias",
}  # a fault inside has a longer name, or the inner one
OF_THE_TEMPLATE = ("chat_template_kwargs", "documents")  # its errors name the variable
# Settings whose field has another name, or none.
OTHER_NAMES = {
    "top_k": "top_k, where -1 and 0 mean none",
    "seed": "seed, where -1 means none",
    "max_tokens": "max_tokens and max_completion_tokens",
    "stop_token_ids": "stop_token_ids, beside those of generation_config.json",
    "logprobs": "logprobs, and top_logprobs of chat",
    "structured_outputs": "structured_outputs and response_format",
    "thinking_token_budget": "thinking_token_budget, where -1 means none",
    "beam_width": "use_beam_search, n and beam_width",
}


VALIDATORS = {
    path: jsonschema.Draft202012Validator(openapi_body(schema)["requestBody"]["content"]["application/json"]["schema"])
    for path, schema in SCHEMAS.items()
}
EACH_FIELD = pytest.mark.parametrize(("path", "name"), [(path, name) for path in BASE for name in FIELDS | OF_ONE[path]])


@EACH_FIELD
def test_valid_values(client: httpx.Client, path: str, name: str) -> None:
    valid, _, others = (FIELDS | OF_ONE[path])[name]
    for value in valid:
        body = {"max_tokens": 2, **BASE[path], **others, name: value}
        VALIDATORS[path].validate(body)
        response = client.post(f"/v1/{path}", json=body)
        assert response.status_code == 200, (value, response.text)
        assert not response.text.startswith("data:") or response.text.endswith("data: [DONE]\n\n")


@EACH_FIELD
def test_invalid_values(client: httpx.Client, path: str, name: str) -> None:
    _, invalid, others = (FIELDS | OF_ONE[path])[name]
    for value in invalid:
        error = refusal(client, path, **{"max_tokens": 2, **BASE[path], **others, name: value})
        assert error["param"] is not None or name in error["message"] or name in OF_THE_TEMPLATE, (value, error)
        if error["param"] is not None and name not in NESTED:
            assert error["param"].split(".")[0] == name, (value, error)


@pytest.mark.parametrize("path", BASE)
def test_null_is_absent(client: httpx.Client, path: str) -> None:
    names = SCHEMAS[path].model_fields.keys() - BASE[path].keys() - {"max_tokens", "temperature"}
    plain = post(client, path, max_tokens=3, temperature=0, **BASE[path])["choices"]
    assert post(client, path, max_tokens=3, temperature=0, **BASE[path], **dict.fromkeys(names))["choices"] == plain
    refused = {**dict.fromkeys(REFUSED), "guided_json": None, "unknown": None}
    assert post(client, path, max_tokens=3, temperature=0, **BASE[path], **refused)["choices"] == plain


@pytest.mark.parametrize("path", BASE)
def test_the_table_has_every_field(path: str) -> None:
    other = {"prompt_template"}  # it stands for the prompt; test_prompt_template.py
    assert (FIELDS | OF_ONE[path]).keys() | other == SCHEMAS[path].model_fields.keys()
    assert not REFUSED.keys() & SCHEMAS[path].model_fields.keys()


@pytest.mark.parametrize("path", BASE)
def test_refused_fields_are_named_with_a_reason(client: httpx.Client, path: str) -> None:
    for name in (*REFUSED, "guided_json", "guided_decoding_backend"):
        for value in (False, "a", {}):
            error = refusal(client, path, **BASE[path], **{name: value})
            assert error["param"] == name and error["message"].startswith(f"{name} is not supported: ")


@pytest.mark.parametrize("path", BASE)
@pytest.mark.parametrize(("name", "nearest"), [("temprature", "temperature"), ("max_token", "max_tokens"), ("stopp", "stop")])
def test_unknown_fields_have_the_nearest_name(client: httpx.Client, path: str, name: str, nearest: str) -> None:
    error = refusal(client, path, **BASE[path], **{name: 1})
    assert error["param"] == name and f"Did you mean '{nearest}'" in error["message"]


def test_every_harmless_field_has_its_reason() -> None:
    assert len(HarmlessFields.model_fields) == 17
    assert all(field.description and len(field.description) > 10 for field in HarmlessFields.model_fields.values())


def test_every_setting_has_a_field() -> None:
    settings = {field.name for field in dataclasses.fields(SamplingParams)}
    assert settings == {*SAME, *OTHER_NAMES}
    assert settings <= CompletionRequest.model_fields.keys() and settings <= ChatRequest.model_fields.keys()
    forms = {field.name for field in dataclasses.fields(StructuredOutputs)}
    assert forms == {field.alias or name for name, field in StructuredOutputsFields.model_fields.items()}


def test_the_bodies_are_in_the_openapi_document(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "$defs" not in client.get("/openapi.json").text
    for path, schema in SCHEMAS.items():
        route = document["paths"][f"/v1/{path}"]["post"]
        body = route["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator.check_schema(body)
        assert body["properties"].keys() == schema.model_fields.keys() and body["additionalProperties"] is False
        assert {"200", "400", "401", "404", "429", "503"} <= route["responses"].keys()
    assert document["paths"].keys() >= {"/v1/models", "/v1/models/{model}"}


def test_the_document_has_the_limits_of_settings() -> None:
    for validator in VALIDATORS.values():
        fields = validator.schema["properties"]
        for name, good, bad in (
            ("temperature", 0, -0.1),
            ("top_p", 0.1, 0),
            ("top_k", -1, -2),
            ("seed", -1, 2**63),
            ("n", 1, 0),
            ("repetition_penalty", 0.1, 0),
            ("presence_penalty", -2, 2.1),
            ("exit_rule", "none", "early"),
            ("acceptance", "exact", "lossy"),
            ("thinking_token_budget", -1, -2),
        ):
            check = jsonschema.Draft202012Validator(fields[name])
            assert check.is_valid(good) and check.is_valid(None) and not check.is_valid(bad), name


def test_other_bodies_are_refused(client: httpx.Client) -> None:
    for content in (b"", b"[]", b"{", b'"a"', b'{"prompt": NaN}', b"[" * 100, b'{"prompt": 1e999}', b"\xff"):
        response = client.post("/v1/completions", content=content)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error", content


@pytest.mark.parametrize("path", BASE)
def test_half_of_a_surrogate_pair_is_one_error(client: httpx.Client, path: str) -> None:
    """JSON may hold it, and no answer can. Fields that no answer shows are not looked at."""
    half = "\\ud800"
    bodies = [f'"{half}": 1', f'"model": "{half}"', f'"stop": "{half}"', f'"logit_bias": {{"{half}": 1}}']
    bodies += [f'"structured_outputs": {{"regex": "{half}"}}', f'"structured_outputs": {{"{half}": 1}}', f'"bad_words": ["{half}"]']
    bodies += [
        f'"response_format": {{"type": "{half}"}}',
        f'"exit_rule": "{half}"',
        f'"prompt": "{half}"',
        f'"cache_salt": "{half}"',
    ]
    if path != "completions":
        bodies += [f'"messages": [{{"role": "user", "content": "{half}"}}]', f'"messages": [{{"role": "{half}", "content": "a"}}]']
        bodies += [f'"tools": [{{"type": "function", "function": {{"name": "f", "description": "{half}"}}}}]']
        bodies += [
            f'"tools": [{{"type": "function", "function": {{"name": "{half}"}}}}]',
            f'"chat_template_kwargs": {{"{half}": 1}}',
        ]
    for field in bodies:
        start = json.dumps(BASE[path] | {"max_tokens": 1})[:-1]
        response = client.post(f"/v1/{path}", content=f"{start}, {field}}}")
        assert response.status_code in ((400, 404) if "model" in field else (400,)), (field, response.text)
        assert response.json()["error"]["message"]


def test_paths_that_the_server_has_not(client: httpx.Client) -> None:
    for response, status in ((client.post("/v1/embeddings", json={}), 404), (client.get("/v1/completions"), 405)):
        assert response.status_code == status and response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    (model,) = listed["data"]
    assert listed["object"] == "list" and (model["id"], model["object"], model["parent"]) == ("demo", "model", None)
    assert (model["max_model_len"], model["root"], model["owned_by"]) == (512, "demo", "hasten")
    assert client.get("/v1/models/demo").json() == model
    for name in ("other", "some/other", "%2e%2e"):
        response = client.get(f"/v1/models/{name}")
        assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    response = client.post("/v1/completions", json={"model": "other", "prompt": "a"})
    assert response.status_code == 404 and response.json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("message", "is_valid"),
    [
        ({"role": "user", "content": "a"}, True),
        ({"role": "user", "content": [{"type": "text", "text": ""}]}, True),
        ({"role": "user"}, False),
        ({"role": "system", "content": None}, False),
        ({"role": "tool", "content": []}, False),
        ({"role": "user", "content": "a", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}, False),
        ({"role": "user", "content": "a", "tool_calls": []}, True),
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": None, "tool_calls": []}, False),
        ({"role": "assistant", "content": ""}, True),
        ({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}, True),
        ({"role": "assistant", "reasoning": "a"}, True),
        ({"role": "root", "content": "a"}, False),
    ],
)
def test_the_document_has_the_messages_that_are_read(message: dict[str, Any], is_valid: bool) -> None:
    assert jsonschema.Draft202012Validator(MESSAGES_SCHEMA).is_valid([message]) == is_valid
    if is_valid:
        assert read_messages([message])
    else:
        with pytest.raises(ApiError):
            read_messages([message])
