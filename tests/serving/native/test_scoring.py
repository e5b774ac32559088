"""Scores and choices over HTTP equal those of ``LLM`` in process."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
from tests.serving.native.conftest import error_of

from hasten import LLM
from hasten.core.output import ScoreOutput
from hasten.entrypoints.async_llm import AsyncLLM

PROMPT = "def add(a, b):\n    return"
CONTINUATIONS = [" a + b", " None", {"token_ids": [5, 6]}]
SENT = [" a + b", " None", [5, 6]]


def as_json(score: ScoreOutput) -> dict[str, Any]:
    return {
        "text": score.text,
        "token_ids": list(score.token_ids),
        "logprobs": list(score.logprobs),
        "total": score.total,
        "mean": score.mean,
    }


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_equal_those_in_process(client: httpx.Client, llm: LLM, path: str) -> None:
    response = client.post(path, json={"prompt": PROMPT, "continuations": SENT})
    assert response.json() == {"model": "demo", "scores": [as_json(score) for score in llm.score(PROMPT, CONTINUATIONS)]}


def test_a_prompt_may_be_token_ids(client: httpx.Client, llm: LLM) -> None:
    token_ids = llm.tokenizer.encode(PROMPT)
    response = client.post("/score", json={"model": "demo", "prompt": token_ids, "continuations": [[5, 6]], "cache_salt": "s"})
    (expected,) = llm.score({"prompt_token_ids": token_ids}, [{"token_ids": [5, 6]}])
    assert response.json()["scores"] == [as_json(expected)]


@pytest.mark.parametrize("path", ["/choose", "/v1/choose"])
@pytest.mark.parametrize("normalize", [None, "mean", "sum"])
def test_a_choice_equals_that_in_process(client: httpx.Client, llm: LLM, path: str, normalize: Any) -> None:
    response = client.post(path, json={"prompt": PROMPT, "choices": SENT, "normalize": normalize})
    expected = llm.choose(PROMPT, CONTINUATIONS, normalize=normalize or "mean")
    assert response.json() == {
        "model": "demo",
        "index": expected.index,
        "text": expected.text,
        "probabilities": list(expected.probabilities),
        "scores": [as_json(score) for score in expected.scores],
    }
    assert math.isclose(sum(response.json()["probabilities"]), 1)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("field", ["text_1", "text_2", "queries", "documents"])
def test_fields_of_cross_encoders_are_refused_with_an_explanation(client: httpx.Client, path: str, field: str) -> None:
    status, _, message = error_of(client.post(path, json={field: "x", "model": "demo"}))
    assert status == 400
    assert f"{field} is a field of cross-encoders" in message
    assert "takes prompt and continuations" in message


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/score", {"prompt": "x"}, "continuations"),
        ("/score", {"continuations": ["x"]}, "prompt"),
        ("/score", {"prompt": "x", "continuations": []}, "continuations"),
        ("/score", {"prompt": "x", "continuations": ["y"] * 5}, "continuations"),
        ("/score", {"prompt": "x", "continuations": ["y"], "temperature": 0}, "temperature"),
        ("/score", {"prompt": "x", "continuations": ["y"], "cache_salt": "s" * 1025}, "cache_salt"),
        ("/score", {"prompt": "x", "continuations": ["y"], "model": "other"}, "model"),
        ("/choose", {"prompt": "x", "choices": ["y"] * 5}, "choices"),
        ("/choose", {"prompt": "x", "choices": ["y"], "normalize": "max"}, "normalize"),
        ("/choose", {"prompt": "x", "choices": ["y"], "normalise": "sum"}, "normalise"),
    ],
)
def test_a_wrong_request_is_refused(client: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    status, found, _ = error_of(client.post(path, json=body))
    assert (status, found) == (404 if param == "model" else 400, param)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "x " * 600, "continuations": ["y"]}, "context"),
        ({"prompt": [9000], "continuations": ["y"]}, "vocabulary"),
        ({"prompt": "x", "continuations": [[9000]]}, "vocabulary"),
        ({"prompt": [], "continuations": ["y"]}, "empty"),
    ],
    ids=["too long", "prompt", "continuation", "empty"],
)
def test_what_the_engine_refuses_is_an_error_400(client: httpx.Client, body: dict[str, Any], message: str) -> None:
    status, _, found = error_of(client.post("/score", json=body))
    assert status == 400
    assert message in found


def test_minus_infinity_is_written_as_vllm_writes_it(
    client: httpx.Client, demo_llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def score(*arguments: object, **options: object) -> list[ScoreOutput]:
        return [ScoreOutput(text="y", token_ids=(1, 2), logprobs=(-1.0, -math.inf))]

    monkeypatch.setattr(demo_llm, "score", score)
    (found,) = client.post("/score", json={"prompt": "x", "continuations": ["y"]}).json()["scores"]
    assert found == {"text": "y", "token_ids": [1, 2], "logprobs": [-1.0, -9999.0], "total": -9999.0, "mean": -9999.0}
