"""LiteLLM against the server, through its provider for servers with OpenAI's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import litellm
import pytest

PROMPT = "def binary_search("
MESSAGES = [{"role": "user", "content": "Sort a list."}]


@pytest.fixture(scope="module")
def expected(in_process: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    return dict(in_process({"prompts": [PROMPT], "messages": [MESSAGES], "max_tokens": 12}))


def options(url: str, model: str = "openai/demo") -> dict[str, Any]:
    return {"model": model, "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 12, "num_retries": 0}


def test_a_completion_is_a_conversation(url: str, expected: dict[str, Any]) -> None:
    found = litellm.completion(messages=MESSAGES, **options(url))
    assert found.choices[0].message.content == expected["answers"][0]
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 12
    parts = litellm.completion(messages=MESSAGES, stream=True, **options(url))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected["answers"][0]


def test_a_text_completion_has_the_text(url: str, expected: dict[str, Any]) -> None:
    settings = options(url, "text-completion-openai/demo")
    assert litellm.text_completion(prompt=PROMPT, **settings).choices[0].text == expected["texts"][0]
    parts = litellm.text_completion(prompt=PROMPT, stream=True, **settings)
    assert "".join(part.choices[0].text or "" for part in parts) == expected["texts"][0]


def test_errors_are_those_of_the_client(url: str) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=MESSAGES, **options(url, "openai/other"))
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=MESSAGES, **{**options(url), "max_tokens": -1})
