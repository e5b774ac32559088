"""An EAGLE-3 head computes the paper's formula, on full sequences and over the paged pool."""

from __future__ import annotations

import pytest
import torch
from tests.layers.eagle_formula import HEAD_DIM, VOCAB_SIZE, Formula, random_head
from torch import Tensor

from hasten.core.plan import RowPlan
from hasten.kv.group import KvGroup
from hasten.kv.pool import KvPool
from hasten.layers.attention import DenseContext
from hasten.layers.eagle import EagleHead
from hasten.runners.paged_context import PagedContext

LENGTH, BLOCK_SIZE = 9, 4


def _inputs(head: EagleHead, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return random aux hidden states of a text, and the token after each."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(LENGTH, head.fc.format.in_features, generator=generator)
    return states, torch.randint(VOCAB_SIZE, (LENGTH,), generator=generator)


def _dense(head: EagleHead, states: Tensor, ids: Tensor) -> Tensor:
    context = DenseContext(head.ops, head.rotary, [len(ids)])
    return head.run(head.fuse(states), ids, context.positions_T, context)


def _close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_before_residual", [False, True])
@pytest.mark.parametrize("num_kv_heads, window", [(1, None), (2, None), (4, None), (2, 3)])
def test_first_draft_tokens_equal_the_formula(num_kv_heads: int, window: int | None, norm_before_residual: bool) -> None:
    head = random_head(num_kv_heads=num_kv_heads, norm_before_residual=norm_before_residual, window=window)
    states, ids = _inputs(head)
    formula = Formula.of(head)
    expected = formula.draft(formula.fuse(states), ids)
    hidden = _dense(head, states, ids)
    assert _close(hidden, expected)
    assert _close(head.head(hidden), formula.logits(expected))
    assert head.head(hidden).shape == (LENGTH, head.spec.draft_vocab_size)


def test_the_formula_detects_wrong_heads() -> None:
    """Negative control: another residual, the previous instead of the next token, reordered states."""
    head = random_head()
    states, ids = _inputs(head)
    formula = Formula.of(head)
    expected = formula.draft(formula.fuse(states), ids)
    assert not _close(_dense(random_head(norm_before_residual=True), states, ids), expected)
    assert not _close(_dense(head, states, ids.roll(1)), expected)
    assert not _close(_dense(head, states.roll(head.spec.target_size, dims=1), ids), expected)


@pytest.mark.parametrize("window", [None, 5])
def test_draft_tokens_over_the_pool_equal_the_formula_of_the_full_chain(window: int | None) -> None:
    """A prompt in two chunks, then draft tokens one by one, each on the hidden state before it."""
    head = random_head(norm_before_residual=True, window=window)
    states, ids = _inputs(head)
    num_prompt_tokens, formula = 6, Formula.of(head)
    attention = head.spec.layer.attention
    group = KvGroup((0,), attention.num_kv_heads, HEAD_DIM, window)
    pool = KvPool([group], 5, BLOCK_SIZE, dtype=torch.float32, device=torch.device("cpu"))

    def run(hidden: Tensor, start: int) -> Tensor:
        stop = start + len(hidden)
        row = RowPlan(0, start, tuple(ids[start:stop].tolist()), ((3, 0, 2),), 1)
        positions = torch.arange(start, stop)
        return head.run(hidden, ids[start:stop], positions, PagedContext(head.ops, pool, [row], head.rotary))

    fused = head.fuse(states[:num_prompt_tokens])
    outputs = [run(fused[:4], 0)[-1:], run(fused[4:], 4)[-1:]]
    for position in range(num_prompt_tokens, LENGTH):
        outputs.append(run(outputs[-1], position))
    chain = formula.fuse(states[:num_prompt_tokens])
    for output in outputs[1:]:
        expected = formula.draft(chain, ids[: len(chain)])
        assert _close(output, expected[-1:])
        chain = torch.cat((chain, expected[-1:]))


def test_draft_token_ids_are_those_of_the_target_by_default() -> None:
    head = random_head()
    assert head.target_ids.tolist() == list(range(11))
    assert head.spec.aux_layer_indices == (0, 1, 2)
