"""Pins over HTTP hold blocks of the caller's own tenant."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.serving.native.conftest import error_of

from hasten import AsyncLLM, SamplingParams
from hasten.serving.caller import Caller

PROMPT = "class Stack:\n    def __init__(self):\n        self.items = []\n" * 3
GREEDY = SamplingParams(temperature=0, max_tokens=2)


def num_cached_tokens(llm: AsyncLLM, salt: str) -> int:
    return asyncio.run(llm.generate(PROMPT + "x", GREEDY, cache_salt=salt)).metrics.num_cached_tokens


@pytest.mark.parametrize("salt", ["", "mine"])
def test_a_pin_serves_requests_with_its_salt_until_it_ends(client: httpx.Client, demo_llm: AsyncLLM, salt: str) -> None:
    num_blocks = len(asyncio.run(demo_llm.encode(PROMPT))) // 16
    pin = client.post("/pin_kv", json={"prompt": PROMPT, "seconds": 60, "cache_salt": salt}).json()
    assert 0 < pin.pop("expires_in") <= 60
    assert pin == {"model": "demo", "num_tokens": num_blocks * 16, "num_blocks": num_blocks, "seconds": 60, "hits": 0}
    assert num_cached_tokens(demo_llm, Caller().cache_salt(salt)) >= num_blocks * 16
    assert num_cached_tokens(demo_llm, Caller().cache_salt("another")) == 0
    assert client.post("/unpin_kv", json={"prompt": PROMPT}).json()["removed"] == (salt == "")
    assert client.post("/unpin_kv", json={"prompt": PROMPT, "cache_salt": salt}).json()["removed"] == (salt != "")
    client.post("/reset_prefix_cache")


def test_a_prompt_may_be_token_ids(client: httpx.Client) -> None:
    token_ids = list(range(20, 60))
    assert client.post("/pin_kv", json={"prompt": token_ids, "seconds": 0.5}).json()["num_tokens"] == 32
    assert client.post("/unpin_kv", json={"prompt": token_ids}).json() == {"model": "demo", "removed": 1}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/pin_kv", {"prompt": PROMPT}, "seconds"),
        ("/pin_kv", {"prompt": PROMPT, "seconds": 0}, "seconds"),
        ("/pin_kv", {"prompt": PROMPT, "seconds": 604_801}, "seconds"),
        ("/pin_kv", {"prompt": PROMPT, "seconds": "60"}, "seconds"),
        ("/pin_kv", {"seconds": 60}, "prompt"),
        ("/pin_kv", {"prompt": PROMPT, "seconds": 60, "tokens": 3}, "tokens"),
        ("/pin_kv", {"prompt": "x", "seconds": 60}, None),
        ("/unpin_kv", {}, "prompt"),
        ("/unpin_kv", {"prompt": PROMPT, "cache_salt": 5}, "cache_salt"),
    ],
)
def test_a_wrong_request_is_refused(client: httpx.Client, path: str, body: dict[str, Any], param: str | None) -> None:
    assert error_of(client.post(path, json=body))[:2] == (400, param)
