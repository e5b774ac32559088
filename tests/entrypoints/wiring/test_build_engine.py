"""What a checkpoint's configuration says of the end of sequences, of sampling and of memory, or why it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM, SamplingParams
from hasten.core.errors import CapacityError, CheckpointError
from hasten.engine import kv_cache_sizing
from hasten.entrypoints.wiring import load_drafters, speculative_setup
from hasten.models import weights

PROMPT = {"prompt_token_ids": [5, 9, 80, 3, 3, 41]}
GIB = 1 << 30


@pytest.fixture
def engine(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., LLM]:
    """Load a tiny model with other values in one of its files."""

    def load(file: str, **values: Any) -> LLM:
        folder = tmp_path / "edited"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny("llama-gqa"), folder)
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps({**content, **values}))
        return LLM(str(folder), max_model_len=32, kv_cache_memory="1MiB", speculative_method="off")

    return load


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["x", "2", [None], 1.5, True, -1, 101, [2, 101], [[2]], {"a": 2}, 10**30, [2.0]])
def test_an_end_of_sequence_that_no_token_has_is_refused_by_name(file: str, value: object, engine: Callable[..., LLM]) -> None:
    with pytest.raises(CheckpointError, match=rf"eos_token_id in {file} of .* allowed: whole numbers from 0 to 100"):
        engine(file, eos_token_id=value)


@pytest.mark.parametrize("value", [None, [], 2, 100, [2, 100, 2]])
def test_tokens_of_the_vocabulary_end_sequences(value: Any, engine: Callable[..., LLM]) -> None:
    llm = engine("generation_config.json", eos_token_id=value)
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    tokens = llm.generate(PROMPT, greedy, use_tqdm=False)[0].outputs[0].token_ids
    stopping = engine("generation_config.json", eos_token_id=[tokens[4], *(value if isinstance(value, list) else [])])
    (answer,) = stopping.generate(PROMPT, greedy.replace(ignore_eos=False), use_tqdm=False)[0].outputs
    assert (answer.token_ids, answer.finish_reason) == (tokens[: tokens.index(tokens[4]) + 1], "stop")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", [1.0]),
        ("top_k", -1),
        ("top_k", False),
        ("top_k", "50"),
        ("top_p", 0.0),
        ("top_p", 10**400),
        ("repetition_penalty", 0.0),
        ("no_repeat_ngram_size", 2.0),
        ("do_sample", "false"),
        ("do_sample", 0),
    ],
)
def test_default_settings_that_cannot_act_are_refused_by_name(name: str, value: object, engine: Callable[..., LLM]) -> None:
    with pytest.raises(CheckpointError, match=rf"(?s)generation_config\.json.*{name}|{name} in generation_config\.json"):
        engine("generation_config.json", **{name: value})


def test_the_drafters_weights_count_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target alone would fit."""
    target = LLM("demo", max_model_len=64, speculative_method="off").describe()["weight_bytes"]
    both = int(1.05 * target)
    monkeypatch.setattr(weights, "available_bytes", lambda: both)
    LLM("demo", max_model_len=64, speculative_method="off")
    monkeypatch.setattr(weights, "load_weights", lambda *arguments: pytest.fail("weights were read"))
    for drafter in ({"draft_model": "demo-draft"}, {"draft_heads": "demo-medusa"}, {"draft_heads": "demo-eagle"}):
        with pytest.raises(CapacityError, match=r"for what drafts; allowed: up to the"):
            LLM("demo", max_model_len=64, **drafter)


@pytest.mark.parametrize("free", [2 * GIB, 256 * GIB])
@pytest.mark.parametrize("drafter", [{}, {"draft_heads": "demo-eagle"}, {"speculative_method": "suffix"}])
def test_the_states_of_drafters_are_in_the_memory_plan(free: int, drafter: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def size(*arguments: Any, reserved_bytes: int, **options: Any) -> kv_cache_sizing.KvCacheSizing:
        planned.append(reserved_bytes)
        return kv_cache_sizing.size_kv_cache(*arguments, reserved_bytes=reserved_bytes, **options)

    for module in (load_drafters, speculative_setup, kv_cache_sizing):
        monkeypatch.setattr(module, "available_bytes", lambda: free)
    monkeypatch.setattr("hasten.entrypoints.wiring.build_engine.size_kv_cache", size)
    LLM("demo", dtype="float32", max_model_len=64, **drafter)
    LLM("demo", max_model_len=64, speculative_method="off")
    assert 0 < planned[0] <= free // 4 and planned[1] == 0
