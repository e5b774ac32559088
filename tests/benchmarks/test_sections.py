"""The benchmark of sections: what it times has the tokens it says, and its quality figure sees text out of place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hasten import LLM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def sections() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("sections")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512, kv_cache_memory="64MiB", threads=1)


def test_both_ways_write_as_many_tokens(sections: ModuleType, llm: LLM) -> None:
    found = sections.measure(llm, tokens=5, turns=2, temperature=0.7)
    assert found["output_tokens"] == {"sections": 30, "plain": 30}
    assert found["cached_tokens"]["sections"] > 0.5 * found["prompt_tokens"]["sections"]
    assert all(0 < found["seconds"][name]["min"] <= found["seconds"][name]["max"] for name in ("sections", "plain"))
    assert all(value["max"] < 0 for value in found["mean_logprob"].values())


def test_the_quality_figure_reads_the_page_from_the_top(sections: ModuleType, llm: LLM) -> None:
    output = sections.in_sections(llm, 6, 1, 0.7)
    texts = [section.token_ids for section in output.sections]
    parts = sections.on_one_page(llm, output, lambda index, _: texts[index])
    assert [text for _, text in parts] == texts
    headings = [section.prompt_token_ids[output.num_shared_tokens :] for section in output.sections]
    separator = tuple(llm.tokenizer.encode("\n\n", add_special_tokens=False))
    page = output.sections[0].prompt_token_ids[: output.num_shared_tokens]
    for (before, text), heading in zip(parts, headings, strict=True):
        page += heading
        assert before == page
        page += text + separator
    (score,) = llm.score({"prompt_token_ids": parts[1][0]}, [{"token_ids": parts[1][1]}])
    assert sections.mean_logprob(llm, parts[1:2]) == pytest.approx(score.mean)
    shuffled = [(prompt, tuple(reversed(text))) for prompt, text in parts]
    assert sections.mean_logprob(llm, shuffled) < sections.mean_logprob(llm, parts)
