"""``LogitsScorer``: its logits, computed over the paged KV cache, equal those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hasten import LLM, SamplingParams
from hasten.core.errors import CapacityError
from hasten.core.plan import RunnerOutput, StepPlan
from tests.tiny_models import tiny_reference

TOKENS = [(7 * i * i + 3 * i) % 90 + 5 for i in range(70)]
SETTINGS = {"dtype": "float32", "block_size": 4, "kv_cache_memory": "1MiB", "max_model_len": 96}


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "qwen3-mixed-window", "gpt2"])
@pytest.mark.parametrize("chunk_size", [1, 7, 128])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_logits_at_every_position_equal_transformers(tiny: Callable[[str], Path], name: str, chunk_size: int, backend: str) -> None:
    llm = LLM(str(tiny(name)), **SETTINGS, backend=backend)
    kv, chunks = llm.engine.scheduler.kv, []
    for chunk in llm.engine.logits_scorer().logits(TOKENS, chunk_size):
        chunks.append(chunk)
        for group, allocator in zip(kv.groups, kv.allocators, strict=True):
            assert allocator.num_held <= group.max_blocks(len(TOKENS), 4, chunk_size)  # blocks outside the window are released
    assert [len(chunk) for chunk in chunks] == [min(chunk_size, 70 - start) for start in range(0, 70, chunk_size)]
    with torch.inference_mode():
        expected = tiny_reference(name)(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(torch.cat(chunks), expected, rtol=1e-4, atol=1e-4)
    assert all(allocator.num_held == 0 for allocator in kv.allocators)


def test_requests_between_two_chunks_find_no_cached_blocks(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS)
    chunks = llm.engine.logits_scorer().logits(TOKENS, 16)
    for _ in range(3):
        next(chunks)
    kv = llm.engine.scheduler.kv
    assert kv.match_prefix(kv.block_hashes("", TOKENS)) == 0
    chunks.close()
    kv.check()
    assert all(allocator.num_held == 0 for allocator in kv.allocators)


def test_logits_depend_on_the_contents_of_the_kv_cache(tiny: Callable[[str], Path]) -> None:
    """A pool that loses precision between steps changes every chunk but the first."""
    llm = LLM(str(tiny("llama-gqa")), **SETTINGS, backend="torch")
    exact = list(llm.engine.logits_scorer().logits(TOKENS, 10))
    pool, run = llm.engine._runner._runner.pool, llm.engine._runner.run

    def lossy(plan: StepPlan) -> RunnerOutput:
        output = run(plan)
        for tensor in pool._tensors:
            tensor.copy_((tensor.nan_to_num() * 8).round() / 8)
        return output

    llm.engine._runner.run = lossy
    differs = [not torch.equal(a, b) for a, b in zip(llm.engine.logits_scorer().logits(TOKENS, 10), exact, strict=True)]
    assert differs == [False] + [True] * 6


def test_scoring_affects_neither_requests_nor_the_prefix_cache(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("mistral-window")), **SETTINGS)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompt = {"prompt_token_ids": TOKENS[:21]}
    expected = llm.generate(prompt, params)[0].outputs[0].token_ids
    running = llm.stream(prompt, params)
    tokens = next(running).token_ids
    scoring = llm.engine.logits_scorer().logits(TOKENS, 16)
    next(scoring)
    tokens += tuple(token for delta in running for token in delta.token_ids)
    scoring.close()
    output = llm.generate({"prompt_token_ids": TOKENS[:30]}, params)[0]  # a prefix of the scored tokens
    assert tokens == expected
    assert output.metrics.num_cached_tokens == 20
    llm.engine.scheduler.kv.check()


def test_a_prompt_that_does_not_fit_raises_an_error_and_holds_no_blocks(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), **{**SETTINGS, "kv_cache_memory": "48KiB", "max_model_len": 32, "backend": "torch"})
    with pytest.raises(CapacityError, match="70 tokens"):
        list(llm.engine.logits_scorer().logits(TOKENS, 16))
    assert llm.engine.scheduler.kv.allocators[0].num_held == 0
