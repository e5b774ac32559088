"""Embeddings equal the mean of transformers' last hidden states, whatever the batches, chunks and the KV pool."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_reference
from torch import Tensor

from hasten import LLM, HastenError, InvalidRequest, SamplingParams
from hasten.core.errors import CapacityError, PromptTooLong

SETTINGS: dict[str, Any] = {"dtype": "float32", "threads": 1, "block_size": 4, "kv_cache_memory": "4MiB", "max_model_len": 96}


def ids(seed: object, count: int) -> list[int]:
    generator = random.Random(repr(seed))
    return [generator.randrange(3, 96) for _ in range(count)]


TEXTS = [ids(i, count) for i, count in enumerate((1, 2, 4, 5, 17, 60, 3, 95, 8))]


def as_input(texts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": list(text)} for text in texts]


def reference(name: str, texts: Sequence[Sequence[int]]) -> Tensor:
    rows = []
    with torch.inference_mode():
        for text in texts:
            mean_E = tiny_reference(name).base_model(torch.tensor([list(text)])).last_hidden_state[0].mean(0)
            rows.append(mean_E / mean_E.norm())
    return torch.stack(rows)


def check(name: str, llm: LLM, texts: Sequence[Sequence[int]] = TEXTS) -> None:
    torch.testing.assert_close(llm.embed(as_input(texts)), reference(name, texts), rtol=0, atol=1e-4)
    llm.engine.scheduler.kv.check()
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-mixed-window", "gpt2"])
@pytest.mark.parametrize("budget", [1, 7, 2048])
def test_embeddings_equal_transformers(name: str, budget: int, backend: str, tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny(name)), **SETTINGS, max_num_batched_tokens=budget, max_num_seqs=min(budget, 64), backend=backend)
    check(name, llm)


def test_a_wrong_mean_is_caught(tiny: Callable[[str], Path]) -> None:
    """Negative control: an embedder that forgets the final norm."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    llm._loaded.embedder._final_norm = lambda hidden_TE: hidden_TE
    with pytest.raises(AssertionError):
        check("llama-gqa", llm)


def test_the_demo_model_equals_transformers() -> None:
    from transformers import AutoModel

    from hasten.checkpoints.hub import SHIPPED

    llm = LLM("demo", dtype="float32", threads=1, max_model_len=128)
    texts = ["def add(a, b):\n    return a + b\n", "class Stack:\n    pass\n", "import os"]
    model = AutoModel.from_pretrained(SHIPPED["demo"], dtype=torch.float32).eval()
    with torch.inference_mode():
        means = [model(torch.tensor([llm.tokenizer.encode(text)])).last_hidden_state[0].mean(0) for text in texts]
    expected = torch.stack([mean_E / mean_E.norm() for mean_E in means])
    torch.testing.assert_close(llm.embed(texts), expected, rtol=0, atol=1e-3)


def test_a_small_pool_takes_texts_in_turn(tiny: Callable[[str], Path]) -> None:
    block = (roomy := LLM(str(tiny("llama-gqa")), **SETTINGS).describe())["kv_bytes"] // roomy["kv_blocks"]
    llm = LLM(str(tiny("llama-gqa")), **{**SETTINGS, "kv_cache_memory": 13 * block, "max_model_len": 48})
    check("llama-gqa", llm, [ids(i, count) for i, count in enumerate((40, 3, 30, 30, 47, 1))])


def test_the_prefix_cache_neither_gives_nor_takes(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    prompt = {"prompt_token_ids": TEXTS[5]}
    (first,) = llm.generate(prompt, params, use_tqdm=False)
    check("llama-gqa", llm)  # and equal although the prompt is cached
    (second,) = llm.generate(prompt, params, use_tqdm=False)
    (other,) = llm.generate({"prompt_token_ids": TEXTS[4]}, params, use_tqdm=False)
    assert (second.outputs[0].token_ids, other.metrics.num_cached_tokens) == (first.outputs[0].token_ids, 0)


def test_an_open_stream_goes_on(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    prompt, params = {"prompt_token_ids": TEXTS[4]}, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    (expected,) = llm.generate(prompt, params, use_tqdm=False)
    stream = llm.stream(prompt, params)
    tokens = list(next(stream).token_ids)
    torch.testing.assert_close(llm.embed(as_input(TEXTS)), reference("llama-gqa", TEXTS), rtol=0, atol=1e-4)
    tokens += [token for delta in stream for token in delta.token_ids]
    assert tokens == list(expected.outputs[0].token_ids)


def test_no_texts_are_no_rows(tiny: Callable[[str], Path]) -> None:
    assert LLM(str(tiny("llama-gqa")), **SETTINGS).embed([]).shape == (0, 64)


def test_mistakes_are_named_before_anything_runs(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    for texts, error, pattern in (
        ("one text", InvalidRequest, "texts are not a list: got str"),
        ([5], InvalidRequest, r"texts\[0\] has the wrong type: got 5"),
        (as_input([[3], []]), InvalidRequest, r"texts\[1\]: the prompt is empty"),
        (as_input([[3], [500]]), InvalidRequest, r"texts\[1\]: 1 token ids of the prompt are outside the vocabulary"),
        (as_input([ids(1, 96)]), PromptTooLong, r"texts\[0\]: "),
    ):
        with pytest.raises(error, match=pattern):
            llm.embed(texts)  # type: ignore[arg-type]


def test_a_full_pool_and_a_broken_model_are_errors_that_hold_no_blocks(tiny: Callable[[str], Path]) -> None:
    block = (roomy := LLM(str(tiny("llama-gqa")), **SETTINGS).describe())["kv_bytes"] // roomy["kv_blocks"]
    llm = LLM(str(tiny("llama-gqa")), **{**SETTINGS, "kv_cache_memory": 13 * block, "max_model_len": 48})
    stream = llm.stream({"prompt_token_ids": ids("stream", 30)}, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    next(stream)
    with pytest.raises(CapacityError, match="a text does not fit the KV pool: got 40 tokens"):
        llm.embed(as_input([ids("long", 40)]))
    stream.close()
    norm, llm._loaded.embedder._final_norm = llm._loaded.embedder._final_norm, lambda hidden_TE: hidden_TE * float("nan")
    with pytest.raises(HastenError, match="hidden states for these texts are not finite"):
        llm.embed(as_input(TEXTS[:3]))
    llm._loaded.embedder._final_norm = norm
    check("llama-gqa", llm, TEXTS[:3])


SELF_DRAFT = {"speculative_method": "self_speculation", "self_draft_layers": 2}


@pytest.mark.parametrize("options", [{"exits": "demo-exits"}, SELF_DRAFT, {"draft_heads": "demo-eagle"}, {"backend": "torch"}])
def test_engine_options_change_no_embedding(options: dict[str, Any]) -> None:
    """Runners of early exit and of drafters stand before the one that computes embeddings."""
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "max_model_len": 64}
    texts = ["def add(a, b):", "import os"]
    llm = LLM("demo", **settings, **options)
    params = SamplingParams(temperature=0, max_tokens=4)
    before = llm.generate(texts, params, use_tqdm=False)
    torch.testing.assert_close(llm.embed(texts), LLM("demo", **settings).embed(texts), rtol=0, atol=1e-4)
    after = llm.generate(texts, params, use_tqdm=False)
    assert [output.outputs[0].text for output in after] == [output.outputs[0].text for output in before]
