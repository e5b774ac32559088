"""Tokenize and detokenize agree with the checkpoint's tokenizer, and refuse what they cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.native.conftest import error_of
from tokenizers import Tokenizer

from hasten import LLM

CHAT = [{"role": "user", "content": "Sort a list."}]
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(llm: LLM) -> Tokenizer:
    return Tokenizer.from_file(str(Path(llm.describe()["folder"]) / "tokenizer.json"))


def tokenize(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_any_text_makes_the_round_trip(client: httpx.Client, tokenizer: Tokenizer, text: str) -> None:
    found = tokenize(client, prompt=text, add_special_tokens=False)
    assert found["tokens"] == tokenizer.encode(text, add_special_tokens=False).ids
    assert found["count"] == len(found["tokens"])
    back = client.post("/detokenize", json={"tokens": found["tokens"]})
    assert back.json() == {"prompt": text}


def test_a_prompt_has_the_tokens_of_a_completion(client: httpx.Client, tokenizer: Tokenizer, llm: LLM) -> None:
    found = tokenize(client, prompt="def f(x):", return_token_strs=True)
    encoded = tokenizer.encode("def f(x):")
    assert found == {"count": 5, "max_model_len": 512, "tokens": encoded.ids, "token_strs": encoded.tokens}
    assert tuple(found["tokens"]) == llm.generate("def f(x):", use_tqdm=False)[0].prompt_token_ids
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "<|endoftext|>def f(x):"}


def test_null_is_absent(client: httpx.Client) -> None:
    absent = tokenize(client, prompt="x")
    null = {"model": None, "messages": None, "add_special_tokens": None, "return_token_strs": None, "tools": None}
    assert tokenize(client, prompt="x", **null) == absent


def test_a_text_longer_than_the_context_is_counted(client: httpx.Client) -> None:
    assert tokenize(client, prompt="x y " * 2000)["count"] > 512


@pytest.mark.parametrize(
    "template",
    [{}, {"add_generation_prompt": False}, {"chat_template_kwargs": {"add_generation_prompt": False}}],
    ids=["default", "no generation prompt", "by kwargs"],
)
def test_a_conversation_has_the_tokens_of_its_template(client: httpx.Client, llm: LLM, template: dict[str, Any]) -> None:
    found = tokenize(client, messages=CHAT, **template)
    assert found["tokens"] == llm.tokenizer.apply_chat_template(CHAT, **template)


def test_a_last_message_can_stay_open(client: httpx.Client, llm: LLM) -> None:
    messages = [*CHAT, {"role": "assistant", "content": "Here is"}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    found = tokenize(client, messages=messages, **options)
    text = client.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"]
    assert text.endswith("Here is")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "exactly one"),
        ({"prompt": "x", "messages": CHAT}, "messages", "exactly one"),
        ({"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt", "belongs to messages"),
        ({"prompt": "x", "tools": []}, "tools", "belongs to messages"),
        ({"prompt": ["x"]}, "prompt", "string"),
        ({"prompt": "x", "add_special_tokens": "yes"}, "add_special_tokens", "boolean"),
        ({"prompt": "x", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "unknown field"),
        ({"messages": []}, "messages", "one or more"),
        ({"messages": [{}]}, "messages.0.role", "allowed: system"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "neither text"),
        ({"messages": CHAT * 1025}, "messages", "allowed: up to 1024"),
        ({"messages": CHAT, "add_special_tokens": True}, "add_special_tokens", "does not go with messages"),
        ({"messages": CHAT, "chat_template": "{{ 1 }}"}, "chat_template", "own template"),
        ({"prompt": "x", "model": "other"}, "model", "does not exist"),
    ],
)
def test_a_wrong_request_is_refused(client: httpx.Client, body: dict[str, Any], param: str, message: str) -> None:
    status, found, text = error_of(client.post("/tokenize", json=body))
    assert (status, found) == (404 if param == "model" else 400, param)
    assert message in text


def test_half_of_a_surrogate_pair_is_refused(client: httpx.Client) -> None:
    status, _, message = error_of(client.post("/tokenize", content=rb'{"prompt": "\ud800"}'))
    assert status == 400
    assert "surrogate" in message


@pytest.mark.parametrize(
    ("tokens", "param"),
    [
        ([-1], "tokens.0"),
        ([8192], "tokens"),
        ([2**31], "tokens.0"),
        ([1.5], "tokens.0"),
        ([True], "tokens.0"),
        ([5] * 513, "tokens"),
    ],
    ids=["negative", "beyond the vocabulary", "beyond 32 bits", "fraction", "boolean", "beyond the context"],
)
def test_wrong_token_ids_are_refused(client: httpx.Client, tokens: list[Any], param: str) -> None:
    assert error_of(client.post("/detokenize", json={"tokens": tokens}))[:2] == (400, param)


def test_the_largest_token_ids_are_decoded(client: httpx.Client, tokenizer: Tokenizer) -> None:
    tokens = [8191] * 512
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": tokenizer.decode(tokens)}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_the_tokenizer_describes_itself(client: httpx.Client, llm: LLM) -> None:
    config = json.loads((Path(llm.describe()["folder"]) / "tokenizer_config.json").read_text())
    found = client.get("/tokenizer_info").json()
    assert found == client.get("/tokenizer_info", params={"model": "demo"}).json()
    assert found.pop("tokenizer_class") == "PreTrainedTokenizerFast"
    assert found.pop("chat_template") == llm.tokenizer.chat_template_source(has_tools=False) is not None
    assert found == {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    assert error_of(client.get("/tokenizer_info", params={"model": "other"}))[:2] == (404, "model")


def test_messages_of_the_developer_are_those_of_the_system(client: httpx.Client) -> None:
    found = [
        tokenize(client, messages=[{"role": role, "content": "Be brief."}, *CHAT])["tokens"] for role in ("developer", "system")
    ]
    assert found[0] == found[1]
    assert len(found[0]) > len(tokenize(client, messages=CHAT)["tokens"])
