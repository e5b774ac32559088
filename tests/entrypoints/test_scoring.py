"""Scores are those of a full pass of transformers, whatever the chunks, the prefix cache and the pool."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_reference

from hasten import LLM, HastenError, SamplingParams
from hasten.core.errors import CapacityError
from hasten.core.plan import RunnerOutput, StepPlan
from hasten.engine import scorers as scorers_module

SETTINGS: dict[str, Any] = {"dtype": "float32", "threads": 1, "block_size": 4, "kv_cache_memory": "4MiB", "max_model_len": 96}
NAMES = ["llama-gqa", "qwen3-mixed-window"]


def ids(seed: object, count: int) -> list[int]:
    draw = random.Random(repr(seed))
    return [draw.randrange(3, 96) for _ in range(count)]


PROMPT = ids("prompt", 22)  # five blocks and a half
ANSWERS = [ids(("answer", i), count) for i, count in enumerate((1, 2, 9, 30, 5, 1, 4, 3, 3, 17))]


def given(token_ids: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"token_ids": list(each)} for each in token_ids]


@cache
def whole(name: str, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
    """One pass over both."""
    with torch.inference_mode():
        logprobs_TV = tiny_reference(name)(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return [float(logprobs_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]


def close(found: Sequence[float], expected: Sequence[float]) -> bool:
    return len(found) == len(expected) and all(abs(a - b) <= 1e-4 * max(1.0, abs(b)) for a, b in zip(found, expected, strict=True))


def compare(
    llm: LLM,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    params: SamplingParams | None = None,
    *,
    depth: int | None = None,
    salt: str = "",
) -> None:
    """The scores of all answers are right, and nothing is held after them that was not before."""
    kv = llm.engine.scheduler.kv
    held = [allocator.num_held for allocator in kv.allocators]
    scores = llm.score({"prompt_token_ids": list(prompt)}, given(answers), params, cache_salt=salt)
    assert [allocator.num_held for allocator in kv.allocators] == held
    kv.check()
    assert len(scores) == len(answers)
    for score, answer, logprobs in zip(scores, answers, expected, strict=True):
        assert (score.token_ids, score.exit_layer) == (tuple(answer), depth)
        assert close(score.logprobs, logprobs)


def check(name: str, llm: LLM, prompt: Sequence[int], answers: Sequence[Sequence[int]], salt: str = "") -> None:
    """Against transformers."""
    compare(llm, prompt, answers, [whole(name, tuple(prompt), tuple(answer)) for answer in answers], salt=salt)


@contextmanager
def watched(llm: LLM, change: Callable[[StepPlan], StepPlan] = lambda plan: plan) -> Iterator[list[StepPlan]]:
    """The plans that the runner gets, changed on their way to it."""
    runner, plans, run = llm.engine._runner, list[StepPlan](), llm.engine._runner.run

    def seen(plan: StepPlan) -> RunnerOutput:
        plans.append(plan)
        return run(change(plan))

    runner.run = seen
    try:
        yield plans
    finally:
        del runner.run


# ---------------------------------------------------------------- equality with transformers


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
@pytest.mark.parametrize("budget", [1, 7, 2048])
def test_scores_are_those_of_one_pass_over_prompt_and_continuation(
    name: str, budget: int, backend: str, tiny: Callable[[str], Path]
) -> None:
    """In as few steps as the budget allows, and a second time on the prompt's own blocks."""
    budgets = {"max_num_batched_tokens": budget, "max_num_seqs": min(budget, 64)}
    llm = LLM(str(tiny(name)), **SETTINGS, **budgets, backend=backend)
    num_after = sum(len(answer) - 1 for answer in ANSWERS)
    for num_cached in (0, 20):  # the blocks whose hit leaves one token to compute
        with watched(llm) as plans:
            check(name, llm, PROMPT, ANSWERS)
        num_prompt = len(PROMPT) - num_cached
        assert sum(plan.num_tokens for plan in plans) == num_prompt + num_after
        assert len(plans) == -(-num_prompt // budget) + -(-num_after // budget)
        assert max(plan.num_tokens for plan in plans) <= budget


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_any_length_and_a_pool_of_any_size(name: str, tiny: Callable[[str], Path]) -> None:
    """Around the borders of blocks and windows; with room for all continuations, and for one at a time."""
    roomy = LLM(str(tiny(name)), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    tight = LLM(str(tiny(name)), **{**SETTINGS, "kv_cache_memory": 13 * block, "max_model_len": 48})
    for num_prompt in (1, 3, 4, 5, 8, 9, 16, 17):
        with watched(roomy) as few:
            check(name, roomy, ids(num_prompt, num_prompt), ANSWERS)
        with watched(tight) as many:
            check(name, tight, ids(num_prompt, num_prompt), ANSWERS)
        assert len(few) == 2 < len(many)


@pytest.mark.parametrize("num_prompt", [5, 70])
def test_what_a_window_has_left_behind_is_given_back(num_prompt: int, tiny: Callable[[str], Path]) -> None:
    """A prompt and continuations of 18 blocks, in a pool of ten."""
    roomy = LLM(str(tiny("mistral-window")), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    budget = {"max_num_batched_tokens": 4, "max_num_seqs": 4}
    llm = LLM(str(tiny("mistral-window")), **{**SETTINGS, **budget, "kv_cache_memory": 10 * block})
    assert (llm.describe()["kv_blocks"], llm.describe()["max_model_len"]) == (10, 96)
    check("mistral-window", llm, ids("long", num_prompt), [ids((i, num_prompt), 75 - num_prompt) for i in range(3)])


def test_continuations_are_finished_one_after_the_other(tiny: Callable[[str], Path]) -> None:
    """So that long ones do not hold each other's blocks: in a pool for one of them, in steps too small for it."""
    roomy = LLM(str(tiny("llama-gqa")), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    budget = {"max_num_batched_tokens": 7, "max_num_seqs": 4}
    llm = LLM(str(tiny("llama-gqa")), **{**SETTINGS, **budget, "kv_cache_memory": 14 * block, "max_model_len": 48})
    check("llama-gqa", llm, PROMPT[:10], [ids(("long", i), 30) for i in range(4)])


def test_memory_for_logits_is_bounded(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary means fewer tokens a step."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    monkeypatch.setattr(scorers_module, "MAX_LOGITS", 5 * 101 + 100)
    with watched(llm) as plans:
        check("llama-gqa", llm, PROMPT, ANSWERS)
    assert max(len(plan.sampled_sequence_ids) for plan in plans) == 5


def test_scores_are_the_logprobs_that_generation_reports(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=12, ignore_eos=True, logprobs=0, repetition_penalty=1.3)
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    answer = output.outputs[0]
    assert answer.logprobs is not None and answer.cumulative_logprob is not None
    (score,) = llm.score({"prompt_token_ids": PROMPT}, given([answer.token_ids]), params)
    assert close(score.logprobs, [token.logprob for token in answer.logprobs])
    assert score.total == pytest.approx(answer.cumulative_logprob, abs=1e-4)
    assert score.mean == pytest.approx(score.total / 12)


# ---------------------------------------------------------------- the prefix cache


def test_requests_and_scores_share_the_prompts_blocks_within_a_tenant(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    prompt, params = {"prompt_token_ids": PROMPT}, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    check("llama-gqa", llm, PROMPT, ANSWERS, salt="a")
    (hit,) = llm.generate(prompt, params, use_tqdm=False, cache_salt="a")
    (miss,) = llm.generate(prompt, params, use_tqdm=False, cache_salt="b")
    assert (hit.metrics.num_cached_tokens, miss.metrics.num_cached_tokens) == (20, 0)
    assert hit.outputs == miss.outputs
    for salt, num_prompt in (("b", 2), ("c", 22)):
        with watched(llm) as plans:
            check("llama-gqa", llm, PROMPT, ANSWERS, salt=salt)
        assert plans[0].num_tokens == num_prompt
    # A continuation leaves nothing: it would drive out what is asked for again.
    (longer,) = llm.generate({"prompt_token_ids": PROMPT + ANSWERS[3]}, params, use_tqdm=False, cache_salt="a")
    assert longer.metrics.num_cached_tokens == 20


def test_without_a_prefix_cache_nothing_is_left(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, prefix_caching=False)
    for _ in range(2):
        with watched(llm) as plans:
            check("llama-gqa", llm, PROMPT, ANSWERS)
        assert plans[0].num_tokens == 22


# ---------------------------------------------------------------- beside whoever runs


def test_a_text_that_is_read_at_the_same_time_keeps_its_blocks(tiny: Callable[[str], Path]) -> None:
    """Both scorers number their sequences below zero."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    reading = llm.engine.logits_scorer().logits(PROMPT, 5)
    parts = [next(reading)]
    check("llama-gqa", llm, PROMPT, ANSWERS)
    parts += list(reading)
    with torch.inference_mode():
        expected = tiny_reference("llama-gqa")(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what fails


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_without_room_says_so_and_loses_nothing(name: str, tiny: Callable[[str], Path]) -> None:
    """Because a stream holds it: once that is done, there is room."""
    roomy = LLM(str(tiny(name)), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    llm = LLM(str(tiny(name)), **{**SETTINGS, "kv_cache_memory": 14 * block, "max_model_len": 48})
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    text = {"prompt_token_ids": ids("stream", 28)}
    (expected,) = llm.generate(text, params, use_tqdm=False)
    stream = llm.stream(text, params)
    tokens = list(next(stream).token_ids)
    with pytest.raises(CapacityError, match=r"with one continuation.*34 tokens; allowed: 14 blocks of 4"):
        llm.score({"prompt_token_ids": PROMPT[:4]}, given([ANSWERS[3]]))
    llm.engine.scheduler.kv.check()
    with pytest.raises(CapacityError, match=r"the prompt does not.*40 tokens; allowed: 14 blocks of 4"):
        llm.score({"prompt_token_ids": ids("long", 40)}, given([[5]]))
    llm.engine.scheduler.kv.check()
    tokens += [token for delta in stream for token in delta.token_ids]
    assert tokens == list(expected.outputs[0].token_ids)
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)
    check(name, llm, PROMPT[:4], [ANSWERS[3]])


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_step_that_fails_leaves_nothing_behind(failing: int, tiny: Callable[[str], Path]) -> None:
    """In the prompt's first and last chunk, and among the continuations."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, max_num_batched_tokens=11, max_num_seqs=8)
    plans: list[StepPlan] = []

    def broken(plan: StepPlan) -> StepPlan:
        plans.append(plan)
        if len(plans) == failing:
            raise OSError("planted")
        return plan

    with watched(llm, broken), pytest.raises(OSError, match="planted"):
        check("llama-gqa", llm, PROMPT, ANSWERS)
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)
    llm.engine.scheduler.kv.check()
    check("llama-gqa", llm, PROMPT, ANSWERS)


@pytest.mark.parametrize("poisoned", [2, 3])
def test_numbers_that_are_none_are_an_error_and_enter_no_cache(poisoned: int, tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, max_num_batched_tokens=11, max_num_seqs=8)
    runner, run, count = llm.engine._runner, llm.engine._runner.run, iter(range(1, 100))

    def spoilt(plan: StepPlan) -> RunnerOutput:
        output = run(plan)
        return dataclasses.replace(output, logits=output.logits * math.nan) if next(count) == poisoned else output

    runner.run = spoilt
    with pytest.raises(HastenError, match="not finite"):
        check("llama-gqa", llm, PROMPT, ANSWERS)
    del runner.run
    kv = llm.engine.scheduler.kv
    assert kv.match_prefix(kv.block_hashes("tenant:", PROMPT)) == (0 if poisoned == 2 else 5)
    check("llama-gqa", llm, PROMPT, ANSWERS)


# ---------------------------------------------------------------- planted faults


def forgotten_copies(plan: StepPlan) -> StepPlan:
    return dataclasses.replace(plan, copies=())


def test_a_fork_without_its_copy_is_caught(tiny: Callable[[str], Path]) -> None:
    for name in NAMES:
        llm = LLM(str(tiny(name)), **SETTINGS)
        with watched(llm, forgotten_copies), pytest.raises(AssertionError):
            check(name, llm, PROMPT, ANSWERS)


def test_a_first_logprob_from_the_token_before_is_caught(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    run = llm.engine._runner.run

    def early(plan: StepPlan) -> RunnerOutput:
        if len(plan.rows) > 1:
            return run(plan)
        output = run(StepPlan((dataclasses.replace(plan.rows[0], num_logits=2),)))
        return dataclasses.replace(output, logits=output.logits[:1])

    llm.engine._runner.run = early
    with pytest.raises(AssertionError):
        check("llama-gqa", llm, PROMPT, ANSWERS)
