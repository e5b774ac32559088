"""Statistics of an engine in a process of its own make the same metrics: msgpack gives tuples for lists."""

from __future__ import annotations

from typing import Any

import msgpack

from hasten import LLM, SamplingParams
from hasten.serving.metrics.model_families import model_families
from hasten.serving.metrics.model_snapshot import ModelSnapshot


def samples(description: dict[str, Any], stats: dict[str, Any]) -> list[tuple[str, dict[str, str], float]]:
    families = model_families([ModelSnapshot("m", description, stats)])
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def test_statistics_that_crossed_a_socket_make_the_same_metrics() -> None:
    with LLM("demo", threads=1, speculative_method="suffix", max_model_len=256, kv_cache_memory="16MiB") as llm:
        llm.generate("a = 1\n" * 20, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
        description, stats = llm.describe(), llm.stats()
    assert stats["engine"]["accepted_by_position"], "drafts were accepted"
    crossed = msgpack.unpackb(msgpack.packb(stats), strict_map_key=False, use_list=False)
    assert samples(description, crossed) == samples(description, stats)
