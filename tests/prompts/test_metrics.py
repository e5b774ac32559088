"""Each metric against its definition, written out here or computed by transformers."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.prompts.conftest import TextVariant
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten import LLM
from hasten.checkpoints.hub import resolve
from hasten.core.errors import HastenError, InvalidOption
from hasten.prompts.judge import Judgement, ModelJudge, prefer_first
from hasten.prompts.metric import Attempt, Metric, metric_names, open_metric
from hasten.prompts.metrics.f1 import token_f1
from hasten.prompts.metrics.judge import JudgeMetric
from hasten.prompts.task import PromptItem

NO_LLM = cast(LLM, None)


def attempt(output: str | None, *references: str, prompt: str = "p", line: int = 1) -> Attempt:
    return Attempt(PromptItem(line, {"input": "question"}, references), prompt, output)


def score(metric: Metric, output: str | None, *references: str) -> float:
    return metric.score(attempt(output, *references), NO_LLM).score


def test_every_metric_says_what_it_needs_and_its_range(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("def score(input, output, reference):\n    return 0.5\n")
    facts = {}
    for name in metric_names():
        metric = open_metric(f"python:{file}:score" if name == "python" else name)
        assert metric.name.startswith(name) and metric.low < metric.high
        facts[name] = (metric.needs_output, metric.is_binary, metric.low > float("-inf"))
        metric.close()
    assert facts == {
        "exact_match": (True, True, True),
        "f1": (True, False, True),
        "judge": (True, False, True),
        "log_likelihood": (False, False, False),
        "python": (True, False, False),
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exakt_match", "unknown metric.*Did you mean 'exact_match'"),
        ("exact_match:case", "exact_match has no such form.*ignore_case"),
        ("f1:x", "f1 is written without this"),
        ("python", "needs a file and a function"),
        ("python:", r"python is written without this.*FILE.py:FUNCTION"),
        ("python:a.py:not a name", "needs a file and a function"),
        ("python:nowhere.py:score", r"nowhere.py cannot be read"),
        ("judge:nowhere.txt", r"nowhere.txt cannot be read"),
        ("judge:nowhere.txt,m@http://host/v1", r"nowhere.txt cannot be read"),
        ("judge:@http://host/v1", "the model of the endpoint is missing"),
        ("judge:m@http://user:secret@host/v1", "this is no URL of an endpoint: got 'host/v1'"),
    ],
)
def test_a_wrong_metric_is_one_sentence(name: str, words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        open_metric(name)


def test_exact_match_ignores_space_at_the_ends_and_case_if_asked() -> None:
    metric, lenient = open_metric("exact_match"), open_metric("exact_match:ignore_case")
    assert [score(metric, output, "Paris", "Rome") for output in (" Paris\n", "Rome", "paris", "Par is")] == [1, 1, 0, 0]
    assert score(lenient, "PARIS", "paris") == 1


def squad_f1(output: str, reference: str) -> float:
    """The authors' definition, step by step: precision and recall of the tokens in common."""

    def tokens(text: str) -> list[str]:
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    found, expected = tokens(output), tokens(reference)
    num_same = sum((collections.Counter(found) & collections.Counter(expected)).values())
    if not found or not expected:
        return float(found == expected)
    if not num_same:
        return 0.0
    precision, recall = num_same / len(found), num_same / len(expected)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("output", "reference"),
    [
        ("The cat sat on the mat.", "a cat, on a mat"),
        ("cat cat cat", "cat dog"),
        ("yes", "no"),
        ("", ""),
        ("the", "an"),
        ("the", "cat"),
        ("$3.50!", "3.50"),
        ("Émile Zola's book", "émile zolas"),
        ("a-b c", "ab"),
    ],
)
def test_f1_is_that_of_squad(output: str, reference: str) -> None:
    assert token_f1(output, reference) == pytest.approx(squad_f1(output, reference), abs=1e-12)


def test_f1_cuts_chinese_into_characters_and_takes_the_best_reference() -> None:
    assert token_f1("北京。", "北京") == 1
    assert token_f1("在北京", "北京") == pytest.approx(2 * 2 / 5)
    assert token_f1("GPU 很快", "gpu很快！") == 1
    assert score(open_metric("f1"), "a red fox", "blue", "red fox") == 1


def test_log_likelihood_is_that_of_transformers(llm: LLM) -> None:
    folder = resolve("demo")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def mean_logprob(prompt: str, reference: str) -> float:
        before, both = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {reference}")["input_ids"]
        assert both[: len(before)] == before
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([both])).logits[0].double(), -1)
        found = [float(logprobs[index - 1, both[index]]) for index in range(len(before), len(both))]
        return sum(found) / len(found)

    prompt, references = "# a module\nimport", ("os", "banana.split")
    expected = [mean_logprob(prompt, reference) for reference in references]
    metric = open_metric("log_likelihood")
    for reference, value in zip(references, expected, strict=True):
        assert metric.score(attempt(None, reference, prompt=prompt), llm).score == pytest.approx(value, abs=1e-4)
    found = metric.score(attempt(None, *references, prompt=prompt), llm)
    assert found.score == pytest.approx(max(expected), abs=1e-4)
    assert found.num_tokens == sum(
        len(tokenizer(f" {reference}", add_special_tokens=False)["input_ids"]) for reference in references
    )


class FakeJudge:
    """Gives the first label a probability by a rule over the prompt."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.seen = rule, list[tuple[str, tuple[str, ...]]]()

    def judge(self, prompt: str, labels: Sequence[str]) -> Judgement:
        self.seen.append((prompt, tuple(labels)))
        first = self.rule(prompt)
        return Judgement((first, 1 - first), num_tokens=7)


def test_a_judge_sees_input_output_and_reference() -> None:
    judge = FakeJudge(lambda prompt: 0.9 if "r2" in prompt else 0.2)
    metric = JudgeMetric(TextVariant("mine", "{input}|{output}|{reference}"), judge)
    found = metric.score(attempt("out", "r1", "r2"), NO_LLM)
    assert (found.score, found.num_tokens, metric.name) == (0.9, 14, "judge:mine")
    assert judge.seen == [(f"question|out|{r}", ("good", "bad")) for r in ("r1", "r2")]


def test_a_preference_for_a_place_cancels() -> None:
    """A judge that always says A is 90 % sure of A, and one that sees quality prefers the better one in both orders."""
    template = TextVariant("pair", "{input}: A {first} B {second}")
    assert prefer_first(FakeJudge(lambda prompt: 0.9), template, "q", "x", "y").probabilities == pytest.approx((0.5, 0.5))

    def by_quality(prompt: str) -> float:
        return 0.8 if prompt.index("great") < prompt.index("poor") else 0.2

    found = prefer_first(FakeJudge(by_quality), template, "q", "great", "poor")
    assert (found.probabilities, found.num_tokens) == (pytest.approx((0.8, 0.2)), 14)
    # Negative control: one order alone has the preference.
    one_order = FakeJudge(lambda prompt: 0.9).judge(template.render({"input": "q", "first": "x", "second": "y"}), "AB")
    assert one_order.probabilities[0] == 0.9


def test_a_model_judges_by_the_likelihood_of_the_labels(llm: LLM) -> None:
    found = ModelJudge(llm).judge("import os\nimport", ("sys", "banana"))
    assert found.probabilities == llm.choose("import os\nimport", [" sys", " banana"]).probabilities
    assert found.probabilities[0] > 0.9 and sum(found.probabilities) == pytest.approx(1)
    value = JudgeMetric().score(attempt("Paris", "Paris"), llm)
    assert 0 <= value.score <= 1 and value.num_tokens > 20


def test_identities_change_with_what_scores_depend_on(tmp_path: Path) -> None:
    file, question = tmp_path / "m.py", tmp_path / "q.txt"
    seen = set()
    for text in ("def score(i, o, r): return 0\n", "def score(i, o, r): return 1\n"):
        file.write_text(text)
        question.write_text(text)
        seen |= {open_metric(f"python:{file}:score").identity, open_metric(f"python:{file}:other").identity}
        seen |= {open_metric(f"judge:{question}").identity, open_metric(f"judge:{question},m@http://host/v1").identity}
    seen |= {open_metric(name).identity for name in ("judge", "exact_match", "exact_match:ignore_case", "f1", "log_likelihood")}
    seen |= {open_metric(f"judge:{name}").identity for name in ("m@http://host/v1", "n@http://host/v1", "m@http://other/v1")}
    assert len(seen) == 16


def test_a_template_that_lacks_a_variable_is_one_sentence(tmp_path: Path) -> None:
    question = tmp_path / "q.txt"
    question.write_text("{{ input }} {{ outputs }}")
    with pytest.raises(HastenError, match="outputs"):
        open_metric(f"judge:{question}").score(attempt("x", "y"), NO_LLM)
