"""A judge behind an endpoint: probabilities from logprobs, or the label that it answers, and the metric with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import cast

import pytest
from tests.prompts.endpoint_server import Asked, completion, send, serve

from hasten import LLM
from hasten.core.errors import HastenError
from hasten.prompts.endpoint import Endpoint, EndpointRefused
from hasten.prompts.judge import EndpointJudge
from hasten.prompts.metric import Attempt, open_metric
from hasten.prompts.task import PromptItem

LABELS = ("good", "bad")


def logprobs(**probabilities: float) -> dict[str, object]:
    tops = [{"token": token, "logprob": math.log(value)} for token, value in probabilities.items()]
    return {"logprobs": {"content": [{"token": "x", "top_logprobs": tops}]}}


def answering(content: object, status: int = 200) -> Callable[[BaseHTTPRequestHandler, Asked], None]:
    return lambda handler, asked: send(handler, content, status)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ({"good": 0.6, "bad": 0.2, "other": 0.2}, 0.75),
        ({" Good": 0.3, "good": 0.3, "B": 0.2, "**": 0.1}, 0.75),
        ({"go": 0.5, "": 0.4, "bad.": 0.05}, 0.5 / 0.55),
        ({"bad": 0.9}, 0.0),
        # Too little of it is about the labels, so the answer counts.
        ({"Well": 0.9, "bad": 0.1}, 1.0),
    ],
)
def test_logprobs_of_the_first_token_are_the_probabilities(probabilities: dict[str, float], expected: float) -> None:
    with serve(answering(completion("Good.", **logprobs(**probabilities)))) as server:
        found = EndpointJudge(Endpoint(server.url, "m")).judge("Is it good or bad?", LABELS)
        (asked,) = server.asked
    assert found.probabilities == pytest.approx((expected, 1 - expected)) and found.num_tokens == 42
    assert (asked.body["logprobs"], asked.body["top_logprobs"], asked.body["temperature"]) == (True, 20, 0)
    assert asked.body["messages"][0]["content"].startswith("Is it good or bad?\n\nAnswer with one of these")


def test_tokens_that_begin_both_labels_tell_nothing() -> None:
    with serve(answering(completion("better", **logprobs(be=0.9, best=0.1)))) as server:
        judge = EndpointJudge(Endpoint(server.url, "m"))
        assert judge.judge("q", ("best", "better")).probabilities == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"), [("bad", (0.0, 1.0)), ("It is **Good**!", (1.0, 0.0)), ("goodness, bad", (0.0, 1.0))]
)
def test_without_logprobs_the_answer_counts(text: str, expected: tuple[float, float]) -> None:
    with serve(answering(completion(text))) as server:
        assert EndpointJudge(Endpoint(server.url, "m")).judge("q", LABELS).probabilities == expected


@pytest.mark.parametrize("text", ["", "I cannot say.", "good or bad", "goodbad"])
def test_an_answer_with_no_label_is_one_sentence(text: str) -> None:
    with (
        serve(answering(completion(text))) as server,
        pytest.raises(HastenError, match=r"answers with no label.*allowed: good, bad"),
    ):
        EndpointJudge(Endpoint(server.url, "m")).judge("q", LABELS)


def test_an_endpoint_that_refuses_logprobs_is_asked_without() -> None:
    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        is_refused = "logprobs" in asked.body
        send(handler, {"error": {"message": "no logprobs"}} if is_refused else completion("good"), 400 if is_refused else 200)

    with serve(answer) as server:
        judge = EndpointJudge(Endpoint(server.url, "m"))
        assert [judge.judge("q", LABELS).probabilities for _ in range(3)] == [(1.0, 0.0)] * 3
        assert len(server.asked) == 4
    with serve(answering("no", 401)) as server:
        with pytest.raises(EndpointRefused):
            EndpointJudge(Endpoint(server.url, "m")).judge("q", LABELS)
        assert len(server.asked) == 1
    with serve(answering("no", 400)) as server, pytest.raises(EndpointRefused):
        EndpointJudge(Endpoint(server.url, "m")).judge("q", LABELS)


def test_the_metric_takes_an_endpoint(tmp_path: Path) -> None:
    question = tmp_path / "a question, of mine.txt"
    question.write_text("{{ input }} | {{ output }} | {{ reference }}?")
    attempt = Attempt(PromptItem(1, {"input": "1 + 1"}, ("2", "two")), "p", "2.0")

    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        is_sure = "two" in asked.body["messages"][0]["content"]
        send(handler, completion("good", **logprobs(good=0.8 if is_sure else 0.5, bad=0.2)))

    with serve(answer) as server:
        names = {f"judge:some/m@{server.url}": "Question:\n1 + 1", f"judge:{question},m@{server.url}": "1 + 1 | 2.0 | 2?"}
        for (name, begin), model in zip(names.items(), ("some/m", "m"), strict=True):
            metric = open_metric(name)
            found = metric.score(attempt, cast(LLM, None))
            assert (found.score, found.num_tokens, metric.name) == (pytest.approx(0.8), 84, name)
            first, second = server.asked[-2:]
            assert first.body["messages"][0]["content"].startswith(begin) and first.body["model"] == model
            assert "two" in second.body["messages"][0]["content"]
