"""LangChain's OpenAI classes against the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from openai import NotFoundError

PROMPT = "def binary_search("
MESSAGES = [{"role": "system", "content": "You write Python."}, {"role": "user", "content": "Sort a list."}]


@pytest.fixture(scope="module")
def expected(in_process: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    return dict(in_process({"prompts": [PROMPT], "messages": [MESSAGES], "max_tokens": 12}))


def chat(url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="demo", temperature=0, max_tokens=12, **options)


def test_a_chat_model_answers_and_streams(url: str, expected: dict[str, Any]) -> None:
    asked = [SystemMessage(MESSAGES[0]["content"]), HumanMessage(MESSAGES[1]["content"])]
    answer = chat(url).invoke(asked)
    assert answer.content == expected["answers"][0]
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.response_metadata["finish_reason"] == "length"
    assert "".join(str(part.content) for part in chat(url).stream(asked)) == expected["answers"][0]


def test_answers_have_log_probabilities(url: str) -> None:
    answer = chat(url, logprobs=True, top_logprobs=2).invoke("Sort a list.")
    tokens = answer.response_metadata["logprobs"]["content"]
    assert len(tokens) == 12
    assert {len(token["top_logprobs"]) for token in tokens} == {2}


def test_a_chat_model_gives_structured_output(url: str) -> None:
    schema = {
        "title": "Flag",
        "type": "object",
        "properties": {"n": {"type": "integer", "enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    model = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="demo", temperature=0, max_tokens=100)
    found = model.with_structured_output(schema, method="json_schema").invoke("One or two?")
    assert found in ({"n": 1}, {"n": 2})


def test_a_completion_model_answers_and_streams(url: str, expected: dict[str, Any]) -> None:
    model = OpenAI(base_url=f"{url}/v1", api_key="none", model="demo", temperature=0, max_tokens=12)
    assert model.invoke(PROMPT) == expected["texts"][0]
    assert "".join(model.stream(PROMPT)) == expected["texts"][0]
    assert model.batch([PROMPT, PROMPT]) == expected["texts"] * 2


def test_an_unknown_model_is_the_clients_error(url: str) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="other", max_retries=0).invoke("x")
