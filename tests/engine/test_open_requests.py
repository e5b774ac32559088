"""The histograms and live counts of an engine equal a bookkeeping by hand from its deltas, with a clock that the test moves."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, RequestOutput, SamplingParams
from hasten.core.output import Delta
from hasten.core.result import FinishReason
from hasten.engine.request_histograms import BOUNDS
from hasten.scheduling.sequence import ScheduledRequest
from tests.engine.constant_step_cost import constant_step_cost

OPTIONS: dict[str, Any] = {"dtype": "float32", "block_size": 4, "max_model_len": 128, "kv_cache_memory": "8MiB"}
NUM_REQUESTS = 24


@dataclasses.dataclass
class Ledger:
    """What a test writes down beside the engine."""

    arrivals: dict[str, float] = dataclasses.field(default_factory=dict)
    params: dict[str, SamplingParams] = dataclasses.field(default_factory=dict)
    first: dict[str, float] = dataclasses.field(default_factory=dict)
    last: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)
    steps: list[int] = dataclasses.field(default_factory=list)
    values: dict[str, list[float]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    outputs: list[RequestOutput] = dataclasses.field(default_factory=list)
    num_tokens: int = 0
    num_preemptions: int = 0

    def read(self, deltas: Sequence[Delta], now: float) -> None:
        for delta in deltas:
            answer, num = (delta.request_id, delta.index), len(delta.token_ids)
            if num:
                self.num_tokens += num
                if delta.request_id not in self.first:
                    self.first[delta.request_id] = now
                    self.values["time_to_first_token"].append(now - self.arrivals[delta.request_id])
                if answer in self.last:
                    self.values["inter_token_latency"] += [(now - self.last[answer]) / num] * num
                self.last[answer] = now
            if delta.output is not None:
                self.end(delta.output, now)

    def end(self, output: RequestOutput, now: float) -> None:
        self.outputs.append(output)
        if any(completion.finish_reason not in ("stop", "length") for completion in output.outputs):
            return
        arrival, first, scheduled = self.arrivals[output.request_id], self.first[output.request_id], output.metrics.first_scheduled
        assert scheduled is not None
        lengths = [len(completion.token_ids) for completion in output.outputs]
        params, values = self.params[output.request_id], self.values
        values["e2e_latency"].append(now - arrival)
        values["queue_time"].append(scheduled - arrival)
        values["inference_time"].append(now - scheduled)
        values["prefill_time"].append(first - scheduled)
        values["decode_time"].append(now - first)
        if max(lengths) > 1:
            values["time_per_output_token"].append((now - first) / (max(lengths) - 1))
        values["prompt_tokens"].append(len(output.prompt_token_ids))
        values["prefill_kv_computed_tokens"].append(len(output.prompt_token_ids) - output.metrics.num_cached_tokens)
        values["generation_tokens"].append(sum(lengths))
        values["max_num_generation_tokens"].append(max(lengths))
        values["params_n"].append(params.n)
        assert params.max_tokens is not None
        values["params_max_tokens"].append(params.max_tokens)


def _params(rng: random.Random, seed: int) -> SamplingParams:
    kind = rng.choice(["beams", "greedy", "greedy", "sampled", "sampled"])
    chosen: dict[str, Any] = {"beams": {"beam_width": 2, "temperature": 0}, "greedy": {"temperature": 0}}.get(kind, {})
    if kind == "greedy" and rng.random() < 0.6:
        chosen["allowed_token_ids"] = [5, 6]  # drafts are often right then
    if kind == "sampled":
        chosen = {"temperature": 1.0, "n": rng.choice([1, 3])}
    return SamplingParams(max_tokens=rng.randrange(1, 40), seed=seed, **chosen)


def play(llm: LLM, seed: int) -> Ledger:
    """Run requests that stream, fork, search, are aborted and are preempted."""
    rng, engine, ledger, now = random.Random(seed), llm.engine, Ledger(), 100.0
    engine.clock = lambda: now
    preempt = engine.scheduler._preempt

    def counted(scheduled: ScheduledRequest) -> None:
        ledger.num_preemptions += 1
        preempt(scheduled)

    engine.scheduler._preempt = counted  # type: ignore[method-assign]
    common, open_ids = [rng.randrange(3, 90) for _ in range(20)], []
    while len(ledger.params) < NUM_REQUESTS or engine.has_unfinished_requests:
        now += rng.choice([0.0, 0.0004, 0.003, 0.01, 0.07, 2.0])
        if len(ledger.params) < NUM_REQUESTS and rng.random() < 0.8:
            params = _params(rng, seed)
            own = [rng.randrange(3, 90) for _ in range(rng.randrange(1, 12))]
            request = llm._request({"prompt_token_ids": rng.choice([common + own, own * 3, own])}, params)
            request = dataclasses.replace(request, arrival=now)
            ledger.arrivals[request.request_id], ledger.params[request.request_id] = now, params
            open_ids.append(request.request_id)
            engine.add(request)
        before = engine.stats.num_computed_tokens, engine.stats.num_steps
        now += rng.choice([0.0003, 0.002, 0.012])
        ledger.read(engine.step(), now)
        if engine.stats.num_steps > before[1]:
            ledger.steps.append(engine.stats.num_computed_tokens - before[0])
        assert llm.stats()["live"]["preempted"] == ledger.num_preemptions  # of running requests, too
        if rng.random() < 0.04:
            ledger.read(engine.abort(rng.choice(open_ids)), now)
    return ledger


def counts(name: str, values: Sequence[float]) -> list[int]:
    edges = [float("-inf"), *BOUNDS[name], float("inf")]
    return [sum(low < value <= high for value in values) for low, high in itertools.pairwise(edges)]


@pytest.mark.parametrize("speculative_method", ["off", "prompt_lookup"])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_histograms_equal_those_by_hand(tiny: Callable[[str], Path], seed: int, speculative_method: str) -> None:
    """In a pool too small for all, so that requests are preempted; each counts once all the same."""
    options = {**OPTIONS, "kv_cache_memory": "480KiB", "max_num_seqs": 6}
    with constant_step_cost():
        llm = LLM(str(tiny("llama-gqa")), speculative_method=speculative_method, **options)
    ledger = play(llm, seed)
    stats = llm.stats()
    expected = {**ledger.values, "iteration_tokens": ledger.steps}
    assert set(stats["histograms"]) == set(expected)
    for name, values in expected.items():
        assert stats["histograms"][name]["counts"] == counts(name, values), name
        assert stats["histograms"][name]["sum"] == pytest.approx(sum(values)), name
    live, finished = stats["live"], stats["requests"]["finished"]
    begun = [output for output in ledger.outputs if output.request_id in ledger.first]
    assert live == {
        "prompt_tokens": sum(len(output.prompt_token_ids) for output in begun),
        "cached_tokens": sum(output.metrics.num_cached_tokens for output in begun),
        "generated_tokens": ledger.num_tokens,
        "preempted": sum(output.metrics.num_preemptions for output in ledger.outputs),
    }
    assert live["preempted"] > 0
    assert (stats["engine"]["accepted_tokens"] > 0) == (speculative_method != "off")
    assert finished["abort"] > 0
    num_complete = finished["stop"] + finished["length"]
    assert sum(stats["histograms"]["e2e_latency"]["counts"]) == num_complete < NUM_REQUESTS
    requests = llm.engine.stats.open_requests
    assert not requests._requests and not requests._last_token  # nothing is kept of requests that have ended


def test_running_requests_count_before_they_end(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), speculative_method="off", **OPTIONS)
    stream = llm.stream({"prompt_token_ids": [5, 6, 7]}, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    for num_tokens in (1, 2, 3):
        next(stream)
        stats = llm.stats()
        assert (stats["live"]["prompt_tokens"], stats["live"]["generated_tokens"]) == (3, num_tokens)
        assert sum(stats["histograms"]["time_to_first_token"]["counts"]) == 1
        assert sum(stats["histograms"]["inter_token_latency"]["counts"]) == num_tokens - 1
        assert sum(stats["histograms"]["e2e_latency"]["counts"]) == 0
    stream.close()
    assert sum(llm.stats()["histograms"]["e2e_latency"]["counts"]) == 0  # it was aborted


def test_a_failed_request_counts_as_an_error_alone(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(tiny("llama-gqa")), **OPTIONS)

    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(llm.engine, "_step", fail)
    output = llm.generate({"prompt_token_ids": [5, 6]}, SamplingParams(max_tokens=3), use_tqdm=False)[0]
    assert output.error is not None
    stats = llm.stats()
    assert stats["requests"]["finished"][FinishReason.ERROR] == 1
    assert all(sum(histogram["counts"]) == 0 for histogram in stats["histograms"].values())
    assert not llm.engine.stats.open_requests._requests
