"""``RequestTotals``: each request counts once, however it ends; and the shareable tokens of each request."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, RequestOutput, SamplingParams
from hasten.core.output import CompletionOutput, RequestMetrics
from hasten.core.result import FinishReason
from hasten.engine.request_totals import RequestTotals

OPTIONS: dict[str, Any] = {"dtype": "float32", "block_size": 4, "max_model_len": 128, "kv_cache_memory": "8MiB"}
FIELDS = ("num_prompt_tokens", "num_cached_tokens", "num_shareable_tokens", "num_output_tokens", "num_preemptions")


@pytest.fixture
def load(tiny: Callable[[str], Path]) -> Callable[..., LLM]:
    return lambda **options: LLM(str(tiny("llama-gqa")), **{**OPTIONS, **options})


def generate(llm: LLM, *prompts: Sequence[int], salt: str = "") -> list[RequestOutput]:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    return llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False, cache_salt=salt)


def shareable(llm: LLM, prompt: Sequence[int], salt: str = "") -> int:
    return generate(llm, prompt, salt=salt)[0].metrics.num_shareable_tokens


@pytest.mark.parametrize("seed", range(4))
def test_totals_are_the_sums_over_the_outputs(load: Callable[..., LLM], seed: int) -> None:
    """Streams that end by themselves, that are closed, and that are preempted in a pool too small for them."""
    rng, llm = random.Random(seed), load(kv_cache_memory="480KiB", max_num_seqs=6)
    engine, outputs, ids, num_added = llm.engine, [], [], 0
    common = [rng.randrange(3, 90) for _ in range(20)]
    while num_added < 30 or engine.has_unfinished_requests:
        if num_added < 30 and rng.random() < 0.5:
            params = SamplingParams(max_tokens=rng.randrange(1, 40), n=rng.choice([1, 1, 3]), seed=num_added)
            own = [rng.randrange(3, 90) for _ in range(rng.randrange(1, 12))]
            request = llm._request({"prompt_token_ids": rng.choice([own + common, common + own, own])}, params)
            engine.add(request)
            ids.append(request.request_id)
            num_added += 1
        deltas = engine.step()
        if ids and rng.random() < 0.05:
            deltas += engine.abort(rng.choice(ids))
        ended = [delta.output for delta in deltas if delta.output is not None]
        outputs += ended
        for each in ended:
            ids.remove(each.request_id)
    totals = engine.stats.requests
    assert totals.num_added == len(outputs) == sum(totals.finished.values()) == 30
    for name in FIELDS:
        wanted = outputs if name in FIELDS[3:] else [o for o in outputs if o.metrics.first_scheduled is not None]
        assert getattr(totals, name) == sum(getattr(output.metrics, name) for output in wanted), name
    assert 0 < totals.num_cached_tokens < totals.num_shareable_tokens < totals.num_prompt_tokens
    assert totals.num_preemptions > 0
    assert totals.finished[FinishReason.ABORT] > 0 and totals.finished[FinishReason.LENGTH] > 0


def output(*reasons: FinishReason, error: str | None = None, **metrics: Any) -> RequestOutput:
    completions = [CompletionOutput(index=i, text="", token_ids=(), finish_reason=reason) for i, reason in enumerate(reasons)]
    return RequestOutput(
        request_id="",
        prompt=None,
        prompt_token_ids=(),
        outputs=tuple(completions),
        finished=True,
        error=error,
        metrics=RequestMetrics(arrival=0.0, **metrics),
    )


def test_the_most_severe_reason_counts() -> None:
    totals, (stop, length, abort, error) = RequestTotals(), FinishReason
    for finished in [(stop, stop), (stop, length), (length, abort, stop), (abort, error), ()]:
        totals.count(output(*finished))
    totals.count(output(stop, error="out of memory"))
    assert Counter(totals.finished) == {stop: 2, length: 1, abort: 1, error: 2}


def test_a_prompt_that_was_never_scheduled_is_no_query() -> None:
    totals = RequestTotals()
    totals.count(output(FinishReason.ABORT, num_prompt_tokens=50, num_shareable_tokens=8))
    totals.count(output(FinishReason.STOP, num_prompt_tokens=7, num_cached_tokens=4, num_shareable_tokens=4, first_scheduled=1.0))
    assert (totals.num_prompt_tokens, totals.num_cached_tokens, totals.num_shareable_tokens) == (7, 4, 4)


def test_a_failed_step_counts_its_requests_and_their_prompts(load: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load()
    generate(llm, range(3, 23))

    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(llm.engine, "_step", fail)
    failed = generate(llm, range(3, 23))[0]
    assert failed.error is not None and failed.metrics.num_prompt_tokens == 20
    assert llm.engine.stats.requests.finished[FinishReason.ERROR] == 1
    assert llm.engine.stats.requests.num_added == 2


def test_shareable_tokens_of_requests(load: Callable[..., LLM]) -> None:
    """A common part of 20 tokens after one that varies; then at the front, where the cache finds it."""
    llm, common = load(), list(range(10, 30))
    first, second = generate(llm, [3, *common, 5])[0], generate(llm, [4, *common, 6])[0]
    assert (first.metrics.num_cached_tokens, first.metrics.num_shareable_tokens) == (0, 0)
    assert (second.metrics.num_cached_tokens, second.metrics.num_shareable_tokens) == (0, 20)
    generate(llm, [*common, 7, 8])
    third = generate(llm, [*common, 9, 9])[0]
    assert (third.metrics.num_cached_tokens, third.metrics.num_shareable_tokens) == (20, 20)


def test_prompts_that_arrive_together_count_in_order(load: Callable[..., LLM]) -> None:
    common = list(range(10, 30))
    outputs = generate(load(), *([own, *common, own] for own in range(40, 46)))
    assert [output.metrics.num_shareable_tokens for output in outputs] == [0, 20, 20, 20, 20, 20]


def test_a_cached_output_is_shareable_too(load: Callable[..., LLM]) -> None:
    """The next turn of a conversation finds the answer in the prefix cache, and no earlier prompt has it."""
    llm = load()
    question = list(range(10, 22))
    answer = generate(llm, question)[0].outputs[0].token_ids
    turn = generate(llm, [*question, *answer, 5, 6])[0].metrics
    assert turn.num_shareable_tokens == turn.num_cached_tokens == 12
    longer = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    answer = llm.generate({"prompt_token_ids": question}, longer, use_tqdm=False)[0].outputs[0].token_ids
    turn = generate(llm, [*question, *answer, 5, 6])[0].metrics
    assert turn.num_shareable_tokens == turn.num_cached_tokens == 20


def test_no_other_tenant_and_no_emptied_cache_shares(load: Callable[..., LLM]) -> None:
    llm, prompt = load(), list(range(10, 30))
    generate(llm, prompt, salt="red")
    assert shareable(llm, prompt, salt="blue") == 0
    assert shareable(llm, prompt, salt="red") == 16
    llm.reset_prefix_cache()
    assert shareable(llm, prompt, salt="red") == 0


def test_without_prefix_caching_nothing_is_shareable(load: Callable[..., LLM]) -> None:
    llm, prompt = load(prefix_caching=False), list(range(10, 30))
    assert [shareable(llm, prompt) for _ in range(2)] == [0, 0]
