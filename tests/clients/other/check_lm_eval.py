"""lm-eval's local-completions against the server: its scores are those of ``LLM.score``, its texts those of ``LLM.generate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(scope="module", params=[1, 3], ids=["one at a time", "batches of three"])
def evaluated(url: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    # lm-eval finds that the server tokenises (/tokenizer_info), so it needs no copy of the tokenizer.
    arguments = {"model": "demo", "base_url": f"{url}/v1/completions", "max_length": 512}
    found = simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=["hasten_code_choice", "hasten_code_text"],
        task_manager=TaskManager(include_path=str(TASKS)),
        batch_size=request.param,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    return dict(found)


def test_scores_equal_those_in_process(evaluated: dict[str, Any], in_process: Callable[[dict[str, Any]], Any]) -> None:
    samples = evaluated["samples"]["hasten_code_choice"]
    pairs = [list(arguments) for sample in samples for arguments in sample["arguments"]]
    scores = [response[0] for sample in samples for response in sample["resps"]]
    expected = in_process({"pairs": pairs})["scores"]
    assert len(scores) == 19
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert [bool(is_greedy) for _, is_greedy in scores] == [is_greedy for _, is_greedy in expected]
    assert 0 < sum(is_greedy for _, is_greedy in expected) < len(expected)


def test_the_accuracy_is_that_of_the_scores(evaluated: dict[str, Any]) -> None:
    samples = evaluated["samples"]["hasten_code_choice"]
    is_right = []
    for sample in samples:
        scores = [response[0][0] for response in sample["resps"]]
        is_right.append(scores.index(max(scores)) == sample["doc"]["best"])
    assert evaluated["results"]["hasten_code_choice"]["acc,none"] == pytest.approx(sum(is_right) / len(is_right))
    assert len(is_right) == 6


def test_texts_equal_those_in_process(evaluated: dict[str, Any], in_process: Callable[[dict[str, Any]], Any]) -> None:
    samples = evaluated["samples"]["hasten_code_text"]
    prompts = [sample["arguments"][0][0] for sample in samples]
    texts = [sample["resps"][0][0] for sample in samples]
    assert texts == in_process({"raw_prompts": prompts, "max_tokens": 12, "stop": ["\n\n"]})["texts"]
    assert any(texts)
