"""``GET /metrics``: what a client's own counts are, in both formats; engines that do not answer; nothing that is not measured."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.serving.metrics.traffic import Watched, make_traffic, watched_server

from hasten.core.errors import HastenError
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.metrics import model_snapshot
from hasten.serving.metrics.model_families import buckets, model_families
from hasten.serving.metrics.model_snapshot import ModelSnapshot
from hasten.serving.metrics.server_families import process_families
from hasten.serving.models.served_model import ServedModel
from hasten.serving.models.single import SingleModel

OPEN = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ServeWatched = Callable[..., AbstractContextManager[Watched]]


def samples(text: str, parse: Callable[[str], Any] = parse_text) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in parse(text) for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of a series over all labels that are not given."""
    return sum(number for (each, own), number in found.items() if each == name and labels.items() <= dict(own).items())


def test_the_figures_are_those_of_the_requests(serve_watched: ServeWatched, drafting_llm: AsyncLLM) -> None:
    common = (
        "import sys\nimport json\nimport random\n\n\nclass Figure:\n    def __init__(self, name):\n        self.name = name\n\n"
    )
    prompts = [f"{common}    def figure_{number}(self, a, b):" for number in range(4)]  # the prefix cache has three of the starts
    with serve_watched() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        before = samples(client.get("/metrics").text)
        for number, prompt in enumerate(prompts):
            assert client.post("/generate", json={"prompt": prompt, "max_tokens": 6 + number, "stream": number % 2 == 0}).is_success
        assert client.post("/generate", json={"prompt": prompts[0], "max_tokens": 6}).is_success  # the result cache has it
        client.get("/busy")
        after = samples(client.get("/metrics").text)

    def gain(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    lengths = [len(asyncio.run(drafting_llm.encode(prompt))) for prompt in prompts]
    assert gain("vllm:prompt_tokens_total", model_name="demo", engine="0") == sum(lengths)
    assert gain("vllm:generation_tokens_total") == 6 + 7 + 8 + 9
    assert gain("vllm:request_success_total", finished_reason="length") == gain("vllm:e2e_request_latency_seconds_count") == 4
    assert gain("vllm:time_to_first_token_seconds_count") == 4
    assert gain("vllm:inter_token_latency_seconds_count") == 5 + 6 + 7 + 8
    assert gain("vllm:request_prompt_tokens_sum") == sum(lengths)
    assert gain("vllm:request_generation_tokens_bucket", le="5.0") == 0
    assert gain("vllm:request_generation_tokens_bucket", le="10.0") == gain("vllm:request_generation_tokens_bucket", le="+Inf") == 4
    assert gain("vllm:request_params_max_tokens_sum") == 6 + 7 + 8 + 9
    sources = [gain("vllm:prompt_tokens_by_source_total", source=source) for source in ("local_compute", "local_cache_hit")]
    assert sum(sources) == sum(lengths) and 0 < sources[1] == gain("vllm:prompt_tokens_cached_total")
    assert gain("hasten_result_cache_hits_total") == 1 and gain("hasten_result_cache_misses_total") == 4
    assert gain("hasten_http_requests_total", route="/generate", method="POST", status="200") == 5
    assert gain("http_requests_total", handler="/generate", status="2xx") == 5
    assert gain("http_request_duration_seconds_count", handler="/generate") == 5
    assert gain("hasten_requests_rejected_total", reason="rate_limit") == 1
    assert gain("hasten_process_cpu_seconds_total", process="frontend") > 0
    assert value(after, "hasten_http_requests_in_flight") == 1  # the scrape itself
    assert value(after, "hasten_process_resident_bytes", process="frontend") > 1 << 20
    assert value(after, "vllm:num_requests_running") == value(after, "vllm:num_requests_waiting") == 0


def test_both_formats_say_the_same(serve_watched: ServeWatched) -> None:
    with serve_watched() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        make_traffic(client)
        client.get("/metrics")  # a scrape counts itself for the next one
        plain, open_metrics = client.get("/metrics"), client.get("/metrics", headers=OPEN)
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert open_metrics.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    first, second = samples(plain.text), samples(open_metrics.text, parse_open_metrics)
    assert set(first) == set(second)
    assert len(first) > 300
    changed = {name for (name, labels), number in first.items() if second[name, labels] != number}
    assert all(name.startswith(("hasten_http_", "http_", "hasten_process_")) for name in changed)
    for line in plain.text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) [a-z0-9_:]+ .+|[a-z][a-z0-9_:]*(\{.*\})? [0-9.e+-]+", line), line


def test_scrapes_run_beside_each_other_and_beside_streams(serve_watched: ServeWatched) -> None:
    """Counters never fall from one scrape to the next, and every scrape is complete."""

    def scrape_often(url: str) -> list[Samples]:
        with httpx.Client(base_url=url, timeout=60) as client:
            return [samples(client.get("/metrics").text) for _ in range(4)]

    with serve_watched() as server, ThreadPoolExecutor(5) as threads, httpx.Client(base_url=server.url, timeout=60) as client:
        scrapes = [threads.submit(scrape_often, server.url) for _ in range(4)]
        bodies = [{"prompt": f"class A{number}:", "max_tokens": 60, "stream": True} for number in range(4)]
        answers = list(threads.map(lambda body: client.post("/generate", json=body).status_code, bodies))
        found = [future.result() for future in scrapes]
    assert answers == [200] * 4
    for series in found:
        for earlier, later in itertools.pairwise(series):
            falling = [key for key in earlier if key[0].endswith(("_total", "_count", "_bucket")) and later[key] < earlier[key]]
            assert falling == []
            assert value(later, "hasten_engine_up") == 1


class SilentLLM:
    """An engine that is stopped, or that has ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error, self.is_cancelled = error, False

    @property
    def max_model_len(self) -> int:
        return 16

    def describe(self) -> dict[str, Any]:
        return {"max_model_len": self.max_model_len}

    async def stats(self) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        return {}


class SeveralModels(SingleModel):
    """The demo model, and others beside it."""

    def __init__(self, llm: AsyncLLM, others: Mapping[str, Any]) -> None:
        super().__init__("demo", llm)
        self._others = others

    def loaded(self) -> Sequence[ServedModel]:
        others = [ServedModel(name, name, llm, 0, 1) for name, llm in self._others.items()]
        return [*others, *super().loaded()]


def test_an_engine_that_does_not_answer_in_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_snapshot, "MAX_WAIT", 0.02)
    silent = SilentLLM()
    found = asyncio.run(model_snapshot.take_snapshot(ServedModel("silent", "silent", silent, 0, 1)))  # type: ignore[arg-type]
    assert silent.is_cancelled
    assert found.stats is None
    (family,) = model_families([found])
    assert [(sample.name, sample.value) for sample in family.samples] == [("hasten_engine_up", 0)]


def test_an_engine_that_has_ended_is_down_beside_others(drafting_llm: AsyncLLM) -> None:
    ended = SilentLLM(HastenError("the engine has ended"))
    with watched_server(SeveralModels(drafting_llm, {"ended": ended})) as server:
        found = samples(httpx.get(f"{server.url}/metrics", timeout=60).text)
    up = {dict(labels)["model_name"]: number for (name, labels), number in found.items() if name == "hasten_engine_up"}
    assert up == {"ended": 0, "demo": 1}
    assert {name for (name, labels) in found if dict(labels).get("model_name") == "ended"} == {"hasten_engine_up"}
    assert ("vllm:num_requests_running", (("engine", "0"), ("model_name", "demo"))) in found


def snapshot(llm: AsyncLLM, name: str = "m", **changes: Any) -> ModelSnapshot:
    stats = asyncio.run(llm.stats())
    for key, part in changes.items():
        stats[key] = part
    return ModelSnapshot(name, llm.describe(), stats)


def family_names(snapshots: list[ModelSnapshot]) -> set[str]:
    return {sample.name for family in model_families(snapshots) for sample in family.samples}


def test_only_what_is_measured_has_a_series(demo_llm: AsyncLLM) -> None:
    """Neither a result cache nor speculation, and no speed-up before a draft was verified."""
    plain = snapshot(demo_llm)
    off = ModelSnapshot("m", {**plain.description, "speculative_method": "off"}, plain.stats)
    names = family_names([off])
    assert not [name for name in names if "result_cache" in name or "spec_decode" in name or "decoding_seconds" in name]
    unmeasured = {**plain.stats["engine"], "speed_up": None}  # type: ignore[index]
    assert "hasten_speculation_speed_up" not in family_names([snapshot(demo_llm, engine=unmeasured)])
    assert "vllm:spec_decode_num_drafts_total" in family_names([plain])


def test_models_stand_side_by_side(demo_llm: AsyncLLM) -> None:
    """Each family is written once, with a series for each model."""
    found = [family for family in model_families([snapshot(demo_llm, "a"), snapshot(demo_llm, "b")]) if family.samples]
    assert len({family.name for family in found}) == len(found)
    for family in found:
        assert {sample.labels["model_name"] for sample in family.samples} == {"a", "b"}, family.name


def test_an_engine_process_of_its_own_has_its_own_figures(demo_llm: AsyncLLM) -> None:
    inside = snapshot(demo_llm)
    outside = snapshot(demo_llm, process={"pid": os.getpid() + 1, "cpu_seconds": 12.5, "resident_bytes": None})
    (cpu, memory), (cpu_outside, memory_outside) = process_families([inside]), process_families([outside])
    assert [sample.labels["process"] for sample in (*cpu.samples, *memory.samples)] == ["frontend"] * 2
    assert cpu_outside.samples[1].labels == {"process": "engine", "model_name": "m", "engine": "0"}
    assert cpu_outside.samples[1].value == 12.5
    assert len(memory_outside.samples) == 1  # not measured


@pytest.mark.parametrize("limit", [0.5, 2, 5, 1e9])
def test_buckets_hold_all_that_is_below(limit: float) -> None:
    histogram = {"bounds": [1, 2, 5], "counts": [3, 0, 4, 1], "sum": 20.0}
    expected = [(bound, sum(histogram["counts"][: index + 1])) for index, bound in enumerate(histogram["bounds"]) if bound <= limit]
    found = buckets(histogram, limit)
    assert [(float(bound), total) for bound, total in found[:-1]] == expected
    assert found[-1] == ("+Inf", 8)


def test_token_buckets_end_at_the_context(serve_watched: ServeWatched) -> None:
    with serve_watched() as server:
        found = samples(httpx.get(f"{server.url}/metrics", timeout=60).text)
    bounds = {dict(labels)["le"] for (name, labels) in found if name == "vllm:request_prompt_tokens_bucket"}
    assert bounds == {"1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "+Inf"}  # of a context of 512


def test_an_engine_in_a_process_of_its_own() -> None:
    """Its statistics cross the socket, and a scrape finds it down when it has ended."""
    llm = AsyncLLM("demo", transport="process", threads=1, kv_cache_memory="64MiB", max_model_len=256)
    try:
        with watched_server(SingleModel("demo", llm)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
            assert client.post("/generate", json={"prompt": "def outside(", "max_tokens": 5}).is_success
            found = samples(client.get("/metrics").text)
            asyncio.run(llm.close())
            after = samples(client.get("/metrics").text)
    finally:
        asyncio.run(llm.close())
    assert value(found, "vllm:generation_tokens_total") == 5
    for process in ("frontend", "engine"):
        assert value(found, "hasten_process_cpu_seconds_total", process=process) > 0
        assert value(found, "hasten_process_resident_bytes", process=process) > 1 << 20
    assert value(found, "hasten_engine_up") == 1 and value(after, "hasten_engine_up") == 0
    assert not [key for key in after if key[0].startswith("vllm:")]
