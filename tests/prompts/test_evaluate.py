"""Evaluations: scores per item, intervals by independent formulas, tokens, and what happens to one that is cut short."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import threading
from pathlib import Path

import pytest
import torch
from tests.exhaustive import repeats
from tests.prompts.conftest import TextVariant

from hasten import LLM, SamplingParams, SoftPrompt
from hasten.checkpoints.formats.soft_prompt import TrainedFor, write_soft_prompt
from hasten.checkpoints.hub import resolve
from hasten.core.errors import HastenError, PromptTooLong
from hasten.prompts import evaluate as evaluate_module
from hasten.prompts.evaluate import default_params, evaluate, prompt_seconds
from hasten.prompts.evaluation import Evaluation, ItemResult, compare_evaluations, score_difference, score_interval
from hasten.prompts.metric import Attempt, ItemScore, open_metric
from hasten.prompts.metrics.exact_match import ExactMatchMetric
from hasten.prompts.metrics.judge import DefaultQuestion
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem, PromptTask
from hasten.quality.intervals import paired_difference_interval, student_t, wilson_interval

VARIANT = TextVariant("plain", "# the module {input}\nimport")


def evaluation_of(scores: list[float], name: str = "v", low: float = 0.0, high: float = 1.0) -> Evaluation:
    items = tuple(PromptItem(line, {"input": str(line)}, ("x",)) for line in range(1, len(scores) + 1))
    results = tuple(ItemResult(score=s, output=None, prompt_tokens=3, output_tokens=2, metric_tokens=1) for s in scores)
    return Evaluation(variant=name, metric="m", low=low, high=high, items=items, results=results, seconds=1.0)


def test_scores_and_tokens_are_those_of_single_requests(llm: LLM, task: PromptTask) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, stop=("\n",), seed=0)
    found = evaluate(llm, VARIANT, task.items, ExactMatchMetric(), params)
    for item, result in zip(task.items, found.results, strict=True):
        (output,) = llm.generate(VARIANT.render(item.variables), params, use_tqdm=False)
        assert result.output == output.outputs[0].text
        assert result.score == (output.outputs[0].text.strip() in item.references)
        assert result.prompt_tokens == len(output.prompt_token_ids)
        assert result.output_tokens == output.metrics.num_output_tokens
    assert 0 < sum(found.scores) < len(task.items)
    assert found.num_tokens == found.prompt_tokens + found.output_tokens
    assert found.mean_prompt_tokens == statistics.fmean(result.prompt_tokens for result in found.results)
    assert found.mean == sum(found.scores) / 10 and found.interval == wilson_interval(int(sum(found.scores)), 10)
    assert json.loads(json.dumps(found.as_dict()))["items"][2]["line"] == 3


def test_a_metric_of_the_prompt_alone_generates_nothing(llm: LLM, task: PromptTask) -> None:
    before = llm.stats()["requests"]["output_tokens"]
    found = evaluate(llm, VARIANT, task.items, open_metric("log_likelihood"))
    assert llm.stats()["requests"]["output_tokens"] == before
    assert found.output_tokens == 0 and all(result.output is None and result.metric_tokens > 0 for result in found.results)


def test_a_chat_template_renders_the_prompt(llm: LLM, task: PromptTask) -> None:
    params = default_params(max_tokens=4)
    found = evaluate(llm, VARIANT, task.items[:2], ExactMatchMetric(), params, chat=True)
    message = [{"role": "user", "content": VARIANT.render(task.items[1].variables)}]
    (output,) = llm.chat(message, params, use_tqdm=False)
    assert (found.results[1].output, found.results[1].prompt_tokens) == (output.outputs[0].text, len(output.prompt_token_ids))
    scored = evaluate(llm, VARIANT, task.items[:2], open_metric("log_likelihood"), chat=True)
    (score,) = llm.score({"prompt_token_ids": output.prompt_token_ids}, ["os"])
    assert scored.results[1].score == score.mean


@pytest.fixture
def soft_prompt(llm: LLM, tmp_path: Path) -> SoftPrompt:
    return load(llm, tmp_path / "soft", 1)


def load(llm: LLM, folder: Path, seed: int) -> SoftPrompt:
    """Return a soft prompt of 16 random embeddings."""
    rows = torch.randn(16, 256, generator=torch.Generator().manual_seed(seed)) * 0.05
    write_soft_prompt(folder, rows, TrainedFor(base_model="demo", num_layers=8, num_attention_heads=4))
    return llm.load_soft_prompt(folder)


def test_a_soft_prompt_stands_before_every_prompt(llm: LLM, task: PromptTask, soft_prompt: SoftPrompt) -> None:
    params = default_params(max_tokens=4)
    generated = evaluate(llm, VARIANT, task.items, ExactMatchMetric(), params, soft_prompt=soft_prompt)
    scored = evaluate(llm, VARIANT, task.items, open_metric("log_likelihood"), soft_prompt=soft_prompt)
    for item, result, likely in zip(task.items, generated.results, scored.results, strict=True):
        text = VARIANT.render(item.variables)
        (output,) = llm.generate(text, params, use_tqdm=False, soft_prompt=soft_prompt)
        (score,) = llm.score(text, [f" {item.references[0]}"], soft_prompt=soft_prompt)
        assert (result.output, likely.score) == (output.outputs[0].text, score.mean)
        assert result.prompt_tokens == likely.prompt_tokens == 16 + len(output.prompt_token_ids)
    assert generated.results != evaluate(llm, VARIANT, task.items, ExactMatchMetric(), params).results
    assert scored.scores != evaluate(llm, VARIANT, task.items, open_metric("log_likelihood")).scores


def test_a_judge_reads_its_question_without_the_soft_prompt(llm: LLM, task: PromptTask, soft_prompt: SoftPrompt) -> None:
    (result,) = evaluate(llm, VARIANT, task.items[:1], open_metric("judge"), soft_prompt=soft_prompt).results
    item = task.items[0]
    question = DefaultQuestion().render({"input": item.input_text, "output": str(result.output), "reference": item.references[0]})
    assert result.score == llm.choose(question, [" good", " bad"]).probabilities[0]
    assert result.score != llm.choose(question, [" good", " bad"], soft_prompt=soft_prompt).probabilities[0]


def test_results_are_kept_for_their_soft_prompt(llm: LLM, task: PromptTask, soft_prompt: SoftPrompt, tmp_path: Path) -> None:
    other = load(llm, tmp_path / "other", 2)
    with RunFile(tmp_path / "run.jsonl") as run:
        for num_kept, one in ((1, None), (2, soft_prompt), (3, other), (3, soft_prompt), (3, None)):
            evaluate(llm, VARIANT, task.items[:1], ExactMatchMetric(), run_file=run, soft_prompt=one)
            assert len(run) == num_kept


def test_the_context_holds_the_soft_prompt_too(llm: LLM, task: PromptTask, soft_prompt: SoftPrompt) -> None:
    num_words = 256 - 16 - 4 - len(llm.tokenizer.encode("json"))
    fits, longer = (TextVariant("long", "{input}" + " word" * num) for num in (num_words, num_words + 1))
    params = default_params(max_tokens=4)
    assert evaluate(llm, fits, task.items[:1], ExactMatchMetric(), params, soft_prompt=soft_prompt).prompt_tokens == 252
    evaluate(llm, longer, task.items[:1], ExactMatchMetric(), params)
    with pytest.raises(PromptTooLong, match=r"got 16 of the soft prompt \+ 237 \+ 4 tokens; allowed: up to 256"):
        evaluate(llm, longer, task.items[:1], ExactMatchMetric(), params, soft_prompt=soft_prompt)


def test_the_time_of_a_prompt_holds_that_of_the_soft_prompt(llm: LLM, soft_prompt: SoftPrompt) -> None:
    before = llm.stats()["engine"]["computed_tokens"]
    assert prompt_seconds(llm, ["a b"], soft_prompt=soft_prompt) > 0
    assert llm.stats()["engine"]["computed_tokens"] - before == 3 * (16 + len(llm.tokenizer.encode("a b")))


def test_the_time_of_a_prompt_is_that_of_the_median_length(llm: LLM) -> None:
    ticks = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    before = llm.stats()["engine"]["computed_tokens"]
    texts = ["a b " * count for count in (1, 60, 20)]  # the median has more than a block, which could be cached
    assert prompt_seconds(llm, texts, clock=lambda: next(ticks)) == 3.0
    computed = llm.stats()["engine"]["computed_tokens"] - before
    assert computed == 3 * len(llm.tokenizer.encode("a b " * 20))  # none of them from the cache


def test_what_cannot_run_is_named_before_anything_runs(llm: LLM, task: PromptTask) -> None:
    before = llm.stats()["requests"]["added"]
    with pytest.raises(PromptTooLong, match=r"line 1 of the task, variant long: prompt and output do not fit the context"):
        evaluate(llm, TextVariant("long", "word {input} " * 400), task.items, ExactMatchMetric())
    assert llm.stats()["requests"]["added"] == before


class Interrupting(ExactMatchMetric):
    """A metric that sends Ctrl-C at its third item."""

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        if attempt.item.line == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return ItemScore(1.0)


def test_ctrl_c_leaves_nothing_behind_and_keeps_what_is_done(llm: LLM, task: PromptTask, tmp_path: Path) -> None:
    assert threading.current_thread() is threading.main_thread()
    with RunFile(tmp_path / "run.jsonl") as run, pytest.raises(KeyboardInterrupt):
        evaluate(llm, VARIANT, task.items, Interrupting(), run_file=run)
    requests = llm.stats()["requests"]
    assert (requests["waiting"], requests["running"]) == (0, 0)
    with RunFile(tmp_path / "run.jsonl") as run:
        assert len(run) == 2


def test_kept_results_are_not_computed_again(llm: LLM, task: PromptTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "CHUNK", 3)
    with RunFile(tmp_path / "run.jsonl") as run:
        first = evaluate(llm, VARIANT, task.items[:7], ExactMatchMetric(), run_file=run)
    with RunFile(tmp_path / "run.jsonl") as run:
        before = llm.stats()["requests"]["added"]
        again = evaluate(llm, VARIANT, task.items, ExactMatchMetric(), run_file=run)
        assert llm.stats()["requests"]["added"] - before == 3
        assert again.results[:7] == first.results and len(run) == 10
        fresh = evaluate(llm, VARIANT, task.items, ExactMatchMetric())
        assert again.results == fresh.results
        # Whatever a result depends on makes another key.
        other_reference = [PromptItem(1, {"input": "json"}, ("other",))]
        for variant, items, metric, params, chat in (
            (TextVariant("plain", "import {input}, "), task.items[:1], ExactMatchMetric(), None, False),
            (VARIANT, other_reference, ExactMatchMetric(), None, False),
            (VARIANT, task.items[:1], ExactMatchMetric(ignore_case=True), None, False),
            (VARIANT, task.items[:1], ExactMatchMetric(), default_params(max_tokens=3), False),
            (VARIANT, task.items[:1], ExactMatchMetric(), None, True),
        ):
            num_kept = len(run)
            evaluate(llm, variant, items, metric, params, chat=chat, run_file=run)
            assert len(run) == num_kept + 1


def test_a_model_without_a_tokenizer_is_refused(task: PromptTask, tmp_path: Path) -> None:
    folder = shutil.copytree(resolve("demo"), tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "special*"))
    with LLM(str(folder), threads=1, kv_cache_memory="16MiB") as bare, pytest.raises(HastenError, match="no tokenizer"):
        evaluate(bare, VARIANT, task.items, ExactMatchMetric())


def test_the_interval_of_other_scores_is_students_within_the_range() -> None:
    scores = [0.1, 0.5, 0.9, 0.6]
    margin = student_t(3) * statistics.stdev(scores) / 2
    assert score_interval(scores, -10, 10) == pytest.approx((0.525 - margin, 0.525 + margin))
    assert score_interval(scores, 0, 1) == (pytest.approx(max(0.0, 0.525 - margin)), 1.0)
    assert score_interval([0.5], 0, 1) is None
    assert score_interval([1.0], 0, 1) == wilson_interval(1, 1)


def test_differences_are_paired() -> None:
    first, second = evaluation_of([1, 1, 1, 0, 1, 1]), evaluation_of([1, 0, 0, 1, 1, 0])
    found = score_difference(first, second)
    assert (found.difference, found.interval) == (pytest.approx(2 / 6), paired_difference_interval(2, 3, 1, 0))
    easy_and_hard = [0.1 * index for index in range(10)]
    better = [score + 0.05 + 0.01 * (-1) ** index for index, score in enumerate(easy_and_hard)]
    found = score_difference(evaluation_of(better, "better"), evaluation_of(easy_and_hard, "other"))
    margin = student_t(9) * statistics.stdev([0.06, 0.04] * 5) / math.sqrt(10)
    assert found.interval == pytest.approx((0.05 - margin, 0.05 + margin)) and found.is_real
    # Negative control: against other items in another order, the same scores show nothing.
    unpaired = score_difference(evaluation_of(better), evaluation_of(random.Random(0).sample(easy_and_hard, 10)))
    assert not unpaired.is_real
    with pytest.raises(AssertionError, match="same items"):
        score_difference(first, evaluation_of([1.0]))


def is_any_real(rng: random.Random, level: float | None) -> bool:
    """Return whether six equal variants are told apart on 100 items; ``level`` without correction, or None for what is shipped."""
    evaluations = [evaluation_of([float(rng.random() < 0.5) for _ in range(100)], f"v{index}") for index in range(6)]
    if level is None:
        return any(one.is_real for one in compare_evaluations(evaluations))
    return any(score_difference(one, other, level).is_real for one, other in itertools.combinations(evaluations, 2))


def test_equals_are_told_apart_in_one_comparison_of_twenty() -> None:
    rng, num = random.Random(1), repeats("comparisons")
    assert sum(is_any_real(rng, None) for _ in range(num)) <= 0.05 * num + 2 * math.sqrt(0.05 * 0.95 * num)
    # Negative control: without the correction it is one of three or more.
    assert sum(is_any_real(rng, 0.95) for _ in range(num)) > 0.2 * num


def test_comparisons_are_with_the_best_one() -> None:
    evaluations = [evaluation_of([1.0] * num + [0.0] * (200 - num), f"v{num}") for num in (100, 190, 50, 185)]
    found = compare_evaluations(evaluations)
    assert [(one.first, one.second, one.is_real) for one in found] == [
        ("v190", "v185", False),
        ("v190", "v100", True),
        ("v190", "v50", True),
    ]
    assert found[1].interval == paired_difference_interval(100, 90, 0, 10, 1 - 0.05 / 6)
