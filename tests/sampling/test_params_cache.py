"""The cache computes a value once per settings object and never returns the value of another object."""

from __future__ import annotations

import gc

from hasten.core.sampling_params import SamplingParams
from hasten.sampling import params_cache
from hasten.sampling.params_cache import ParamsCache


def test_a_value_is_computed_once_per_object() -> None:
    cache: ParamsCache[float] = ParamsCache()
    calls: list[SamplingParams] = []

    def compute(params: SamplingParams) -> float:
        calls.append(params)
        return params.temperature

    hot, cold = SamplingParams(temperature=2.0), SamplingParams(temperature=0.5)
    assert [cache.get(params, compute) for params in (hot, cold, hot, cold)] == [2.0, 0.5, 2.0, 0.5]
    assert calls == [hot, cold]


def test_collected_settings_and_a_full_cache_give_no_wrong_value(monkeypatch) -> None:
    monkeypatch.setattr(params_cache, "MAX_ENTRIES", 7)
    cache: ParamsCache[int] = ParamsCache()
    for seed in range(100):  # a freed object's id is mostly reused by the next one
        assert cache.get(SamplingParams(seed=seed), lambda params: params.seed or 0) == seed
        gc.collect(0)
        assert len(cache._entries) <= 7
