"""The runner's next call overwrites a ``StepView``, but neither its clones nor the logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.runners.test_aux_hidden_states import PROMPTS, make_runner
from torch import Tensor

from hasten.checkpoints.hub import resolve
from hasten.core.engine_options import EngineOptions
from hasten.core.plan import RowPlan, StepPlan
from hasten.kv.group import KvGroup
from hasten.layers.eagle import LAYER_INDEX
from hasten.models.eagle import load_eagle
from hasten.models.load import load_decoder
from hasten.runners.backends.choose import choose_backend
from hasten.runners.base import KvCacheConfig

BACKENDS = ["cpu", "torch"]


def check(view: Tensor, clone: Tensor, other: Tensor, backend: str) -> None:
    """Check a view after the next call. The native runner reuses its memory; PyTorch allocates anew."""
    assert not torch.equal(clone, other), "the two calls compute the same, and nothing can be seen"
    assert torch.equal(view, other if backend == "cpu" else clone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_aux_hidden_states_are_overwritten_and_logits_are_not(backend: str, tiny: Callable[[str], Path]) -> None:
    paged = make_runner(tiny("llama-gqa"), backend, (1,))
    prompt, other_prompt = PROMPTS[1], [token + 1 for token in PROMPTS[1]]
    first = paged.runner.run(StepPlan((paged.row(0, 0, prompt, 2),)))
    clone, logits = first.aux_hidden_states[1].clone(), first.logits.clone()
    second = paged.runner.run(StepPlan((paged.row(1, 0, other_prompt, 2),)))
    check(first.aux_hidden_states[1], clone, second.aux_hidden_states[1], backend)
    assert torch.equal(first.logits, logits) and not torch.equal(second.logits, logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_states_of_layers_are_overwritten(backend: str, tiny: Callable[[str], Path]) -> None:
    paged = make_runner(tiny("llama-gqa"), backend, ())
    view = paged.runner.layers([paged.row(0, 0, PROMPTS[1], 0)], None, 0, 2)
    clone = view.clone()
    other = paged.runner.layers([paged.row(1, 0, [token + 1 for token in PROMPTS[1]], 0)], None, 0, 2)
    check(view, clone, other, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_states_of_an_eagle_head_are_overwritten_and_logits_are_not(backend: str) -> None:
    chosen = choose_backend(EngineOptions(backend=backend, dtype="float32", threads=1))
    target = load_decoder(resolve("demo"), dtype="float32", ops=chosen.ops, formats=chosen.formats)
    head = load_eagle(resolve("demo-eagle"), target.decoder, formats=chosen.draft_formats(target.dtype)).head
    attention = head.spec.layer.attention
    groups = (KvGroup((LAYER_INDEX,), attention.num_kv_heads, attention.head_dim),)
    runner = chosen.make_eagle_runner(head, KvCacheConfig(groups, 2, 4, target.dtype), 8)
    fused_TE = torch.randn(2, head.spec.hidden_size, generator=torch.Generator().manual_seed(0))
    view, logits = runner.run([RowPlan(0, 0, (5,), ((0,),), 1)], (), fused_TE[:1])
    clone, logits_clone = view.clone(), logits.clone()
    other, other_logits = runner.run([RowPlan(1, 0, (6,), ((1,),), 1)], (), fused_TE[1:])
    check(view, clone, other, backend)
    assert torch.equal(logits, logits_clone) and not torch.equal(other_logits, logits)
