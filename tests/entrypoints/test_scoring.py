"""Scores equal a full pass of transformers, whatever the chunks, the prefix cache and the KV pool."""

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
    generator = random.Random(repr(seed))
    return [generator.randrange(3, 96) for _ in range(count)]


PROMPT = ids("prompt", 22)  # five and a half blocks
CONTINUATIONS = [ids(("answer", i), count) for i, count in enumerate((1, 2, 9, 30, 5, 1, 4, 3, 3, 17))]


def as_input(token_ids: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"token_ids": list(each)} for each in token_ids]


@cache
def reference(name: str, prompt: tuple[int, ...], continuation: tuple[int, ...]) -> list[float]:
    """Return the log-probabilities of one pass over both."""
    with torch.inference_mode():
        logprobs_TV = tiny_reference(name)(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    return [float(logprobs_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation)]


def close(actual: Sequence[float], expected: Sequence[float]) -> bool:
    pairs = zip(actual, expected, strict=False)
    return len(actual) == len(expected) and all(abs(a - b) <= 1e-4 * max(1.0, abs(b)) for a, b in pairs)


def compare(
    llm: LLM,
    prompt: Sequence[int],
    continuations: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    params: SamplingParams | None = None,
    *,
    exit_layer: int | None = None,
    salt: str = "",
) -> None:
    """Check the scores of all continuations, and that scoring holds no blocks afterwards."""
    kv = llm.engine.scheduler.kv
    num_held = [allocator.num_held for allocator in kv.allocators]
    scores = llm.score({"prompt_token_ids": list(prompt)}, as_input(continuations), params, cache_salt=salt)
    assert [allocator.num_held for allocator in kv.allocators] == num_held
    kv.check()
    assert len(scores) == len(continuations)
    for score, continuation, logprobs in zip(scores, continuations, expected, strict=True):
        assert (score.token_ids, score.exit_layer) == (tuple(continuation), exit_layer)
        assert close(score.logprobs, logprobs)


def check(name: str, llm: LLM, prompt: Sequence[int], continuations: Sequence[Sequence[int]], salt: str = "") -> None:
    """Check the scores against transformers."""
    expected = [reference(name, tuple(prompt), tuple(continuation)) for continuation in continuations]
    compare(llm, prompt, continuations, expected, salt=salt)


@contextmanager
def recorded_plans(llm: LLM, change: Callable[[StepPlan], StepPlan] = lambda plan: plan) -> Iterator[list[StepPlan]]:
    """Yield the plans that the runner gets; ``change`` alters them first."""
    runner, plans, run = llm.engine._runner, list[StepPlan](), llm.engine._runner.run

    def record(plan: StepPlan) -> RunnerOutput:
        plans.append(plan)
        return run(change(plan))

    runner.run = record
    try:
        yield plans
    finally:
        del runner.run


# ---------------------------------------------------------------- equality with transformers


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
@pytest.mark.parametrize("budget", [1, 7, 2048])
def test_scores_equal_one_pass_over_prompt_and_continuation(
    name: str, budget: int, backend: str, tiny: Callable[[str], Path]
) -> None:
    """In as few steps as the token budget allows, and a second time with the prompt in the prefix cache."""
    budgets = {"max_num_batched_tokens": budget, "max_num_seqs": min(budget, 64)}
    llm = LLM(str(tiny(name)), **SETTINGS, **budgets, backend=backend)
    num_continuation_tokens = sum(len(continuation) - 1 for continuation in CONTINUATIONS)  # the last one is not computed
    for num_cached in (0, 20):  # the full blocks before the last token
        with recorded_plans(llm) as plans:
            check(name, llm, PROMPT, CONTINUATIONS)
        num_prompt = len(PROMPT) - num_cached
        assert sum(plan.num_tokens for plan in plans) == num_prompt + num_continuation_tokens
        assert len(plans) == -(-num_prompt // budget) + -(-num_continuation_tokens // budget)
        assert max(plan.num_tokens for plan in plans) <= budget


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_any_length_and_pools_of_any_size(name: str, tiny: Callable[[str], Path]) -> None:
    """Lengths around block and window borders; pools for all continuations and for one at a time."""
    roomy = LLM(str(tiny(name)), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    tight = LLM(str(tiny(name)), **{**SETTINGS, "kv_cache_memory": 13 * block, "max_model_len": 48})
    for num_prompt in (1, 3, 4, 5, 8, 9, 16, 17):
        with recorded_plans(roomy) as roomy_plans:
            check(name, roomy, ids(num_prompt, num_prompt), CONTINUATIONS)
        with recorded_plans(tight) as tight_plans:
            check(name, tight, ids(num_prompt, num_prompt), CONTINUATIONS)
        assert len(roomy_plans) == 2 < len(tight_plans)


@pytest.mark.parametrize("num_prompt", [5, 70])
def test_blocks_outside_the_window_are_freed(num_prompt: int, tiny: Callable[[str], Path]) -> None:
    """Prompt and continuation take 18 blocks; the pool has ten."""
    roomy = LLM(str(tiny("mistral-window")), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    budget = {"max_num_batched_tokens": 4, "max_num_seqs": 4}
    llm = LLM(str(tiny("mistral-window")), **{**SETTINGS, **budget, "kv_cache_memory": 10 * block})
    assert (llm.describe()["kv_blocks"], llm.describe()["max_model_len"]) == (10, 96)
    check("mistral-window", llm, ids("long", num_prompt), [ids((i, num_prompt), 75 - num_prompt) for i in range(3)])


def test_long_continuations_are_scored_one_after_the_other(tiny: Callable[[str], Path]) -> None:
    """The pool holds one of them, and they must not take each other's blocks."""
    roomy = LLM(str(tiny("llama-gqa")), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    budget = {"max_num_batched_tokens": 7, "max_num_seqs": 4}
    llm = LLM(str(tiny("llama-gqa")), **{**SETTINGS, **budget, "kv_cache_memory": 14 * block, "max_model_len": 48})
    check("llama-gqa", llm, PROMPT[:10], [ids(("long", i), 30) for i in range(4)])


def test_memory_for_logits_is_bounded(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary lowers the number of tokens per step."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    monkeypatch.setattr(scorers_module, "MAX_LOGITS", 5 * 101 + 100)
    with recorded_plans(llm) as plans:
        check("llama-gqa", llm, PROMPT, CONTINUATIONS)
    assert max(len(plan.sampled_sequence_ids) for plan in plans) == 5


def test_scores_equal_the_logprobs_of_generation(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=12, ignore_eos=True, logprobs=0, repetition_penalty=1.3)
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    completion = output.outputs[0]
    assert completion.logprobs is not None and completion.cumulative_logprob is not None
    (score,) = llm.score({"prompt_token_ids": PROMPT}, as_input([completion.token_ids]), params)
    assert close(score.logprobs, [token.logprob for token in completion.logprobs])
    assert score.total == pytest.approx(completion.cumulative_logprob, abs=1e-4)
    assert score.mean == pytest.approx(score.total / 12)


# ---------------------------------------------------------------- the prefix cache


def test_requests_and_scores_of_one_tenant_share_the_prompt_blocks(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    prompt, params = {"prompt_token_ids": PROMPT}, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    check("llama-gqa", llm, PROMPT, CONTINUATIONS, salt="a")
    (hit,) = llm.generate(prompt, params, use_tqdm=False, cache_salt="a")
    (miss,) = llm.generate(prompt, params, use_tqdm=False, cache_salt="b")
    assert (hit.metrics.num_cached_tokens, miss.metrics.num_cached_tokens) == (20, 0)
    assert hit.outputs == miss.outputs
    for salt, num_prompt in (("b", 2), ("c", 22)):
        with recorded_plans(llm) as plans:
            check("llama-gqa", llm, PROMPT, CONTINUATIONS, salt=salt)
        assert plans[0].num_tokens == num_prompt
    # Continuations are not cached: they would evict prompts that are used again.
    (longer,) = llm.generate({"prompt_token_ids": PROMPT + CONTINUATIONS[3]}, params, use_tqdm=False, cache_salt="a")
    assert longer.metrics.num_cached_tokens == 20


def test_without_prefix_caching_no_block_is_kept(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, prefix_caching=False)
    for _ in range(2):
        with recorded_plans(llm) as plans:
            check("llama-gqa", llm, PROMPT, CONTINUATIONS)
        assert plans[0].num_tokens == 22


# ---------------------------------------------------------------- beside other work


def test_an_open_logits_scorer_keeps_its_blocks(tiny: Callable[[str], Path]) -> None:
    """Both scorers use negative sequence ids."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    chunks = llm.engine.logits_scorer().logits(PROMPT, 5)
    parts = [next(chunks)]
    check("llama-gqa", llm, PROMPT, CONTINUATIONS)
    parts += list(chunks)
    with torch.inference_mode():
        expected = tiny_reference("llama-gqa")(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("name", NAMES)
def test_a_full_pool_is_an_error_and_loses_nothing(name: str, tiny: Callable[[str], Path]) -> None:
    """A stream holds the blocks; once it ends, the same scores succeed."""
    roomy = LLM(str(tiny(name)), **SETTINGS)
    block = roomy.describe()["kv_bytes"] // roomy.describe()["kv_blocks"]
    llm = LLM(str(tiny(name)), **{**SETTINGS, "kv_cache_memory": 14 * block, "max_model_len": 48})
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    text = {"prompt_token_ids": ids("stream", 28)}
    (expected,) = llm.generate(text, params, use_tqdm=False)
    stream = llm.stream(text, params)
    tokens = list(next(stream).token_ids)
    with pytest.raises(CapacityError, match=r"with one continuation.*34 tokens; allowed: 14 blocks of 4"):
        llm.score({"prompt_token_ids": PROMPT[:4]}, as_input([CONTINUATIONS[3]]))
    llm.engine.scheduler.kv.check()
    with pytest.raises(CapacityError, match=r"the prompt does not.*40 tokens; allowed: 14 blocks of 4"):
        llm.score({"prompt_token_ids": ids("long", 40)}, as_input([[5]]))
    llm.engine.scheduler.kv.check()
    tokens += [token for delta in stream for token in delta.token_ids]
    assert tokens == list(expected.outputs[0].token_ids)
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)
    check(name, llm, PROMPT[:4], [CONTINUATIONS[3]])


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_failed_step_holds_no_blocks(failing: int, tiny: Callable[[str], Path]) -> None:
    """The first or last chunk of the prompt fails, or a step of the continuations."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, max_num_batched_tokens=11, max_num_seqs=8)
    plans: list[StepPlan] = []

    def fail(plan: StepPlan) -> StepPlan:
        plans.append(plan)
        if len(plans) == failing:
            raise OSError("planted")
        return plan

    with recorded_plans(llm, fail), pytest.raises(OSError, match="planted"):
        check("llama-gqa", llm, PROMPT, CONTINUATIONS)
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)
    llm.engine.scheduler.kv.check()
    check("llama-gqa", llm, PROMPT, CONTINUATIONS)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_fault_of_other_requests_ends_the_scoring_with_an_error(failing: int, tiny: Callable[[str], Path]) -> None:
    """Such a fault frees all blocks: before the prompt, between its chunks, and before the continuations."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, max_num_batched_tokens=11, max_num_seqs=8)
    num_steps = 0

    def before_step() -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == failing:
            llm.engine.reset("planted")

    request = llm._loaded.input_processor.request("score", {"prompt_token_ids": PROMPT}, SamplingParams(max_tokens=1), arrival=0.0)
    with pytest.raises(HastenError, match="a step of other requests failed"):
        llm.engine.continuation_scorer(before_step).score(request, CONTINUATIONS)
    num_steps = 0
    with pytest.raises(HastenError, match="a step of other requests failed"):
        list(llm.engine.logits_scorer().logits(PROMPT, 5, before_step))
    llm.engine.scheduler.kv.check()
    check("llama-gqa", llm, PROMPT, CONTINUATIONS)


@pytest.mark.parametrize("nan_step", [2, 3])
def test_nan_logits_are_an_error_and_are_never_cached(nan_step: int, tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, max_num_batched_tokens=11, max_num_seqs=8)
    runner, run, count = llm.engine._runner, llm.engine._runner.run, iter(range(1, 100))

    def with_nan(plan: StepPlan) -> RunnerOutput:
        output = run(plan)
        return dataclasses.replace(output, logits=output.logits * math.nan) if next(count) == nan_step else output

    runner.run = with_nan
    with pytest.raises(HastenError, match="not finite"):
        check("llama-gqa", llm, PROMPT, CONTINUATIONS)
    del runner.run
    kv = llm.engine.scheduler.kv
    assert kv.match_prefix(kv.block_hashes("tenant:", PROMPT)) == (0 if nan_step == 2 else 5)
    check("llama-gqa", llm, PROMPT, CONTINUATIONS)


# ---------------------------------------------------------------- negative controls


def without_copies(plan: StepPlan) -> StepPlan:
    return dataclasses.replace(plan, copies=())


def test_a_missing_copy_on_write_is_caught(tiny: Callable[[str], Path]) -> None:
    for name in NAMES:
        llm = LLM(str(tiny(name)), **SETTINGS)
        with recorded_plans(llm, without_copies), pytest.raises(AssertionError):
            check(name, llm, PROMPT, CONTINUATIONS)


def test_a_first_logprob_one_token_early_is_caught(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    run = llm.engine._runner.run

    def early(plan: StepPlan) -> RunnerOutput:
        if len(plan.rows) > 1:
            return run(plan)
        output = run(StepPlan((dataclasses.replace(plan.rows[0], num_logits=2),)))
        return dataclasses.replace(output, logits=output.logits[:1])

    llm.engine._runner.run = early
    with pytest.raises(AssertionError):
        check("llama-gqa", llm, PROMPT, CONTINUATIONS)
