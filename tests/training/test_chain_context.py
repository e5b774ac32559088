"""Chains that are unrolled at every position of a window at once equal each chain run alone, after its own text only."""

from __future__ import annotations

import pytest
import torch
from tests.layers.eagle_formula import VOCAB_SIZE, Formula, random_head
from torch import Tensor

from hasten.layers.eagle import EagleHead
from hasten.training.eagle import task as eagle_task
from hasten.training.eagle.chain_context import ChainContext
from hasten.training.eagle.task import following

NUM_WINDOWS, WINDOW, GUESSES = 2, 7, 4


def _inputs(head: EagleHead) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids_BW = torch.randint(VOCAB_SIZE, (NUM_WINDOWS, WINDOW), generator=generator)
    return ids_BW, torch.randn(NUM_WINDOWS * WINDOW, head.spec.hidden_size, generator=generator)


def _together(head: EagleHead, ids_BW: Tensor, hidden_TE: Tensor) -> Tensor:
    context = ChainContext(head.ops, head.rotary, NUM_WINDOWS, WINDOW)
    chains = []
    for guess in range(GUESSES):
        hidden_TE = head.run(hidden_TE, eagle_task.following(ids_BW, guess + 1).flatten(), context.positions_T, context)
        chains.append(hidden_TE.view(NUM_WINDOWS, WINDOW, -1))
    return torch.stack(chains)


def _alone(formula: Formula, ids_W: Tensor, states_WE: Tensor, anchor: int) -> list[Tensor]:
    """The guesses of one chain: the layer reads the whole sequence afresh for each of them."""
    chain, guesses = states_WE[: anchor + 1].double(), []
    while len(guesses) < GUESSES and anchor + len(guesses) + 1 < WINDOW:
        guesses.append(formula.guess(chain, ids_W[1 : len(chain) + 1])[-1])
        chain = torch.cat((chain, guesses[-1][None]))
    return guesses


def _wrong(head: EagleHead) -> list[tuple[int, int, int]]:
    """(window, anchor, guess) of every guess that differs."""
    ids_BW, hidden_TE = _inputs(head)
    chains_JBWE = _together(head, ids_BW, hidden_TE)
    formula, states_BWE = Formula.of(head), hidden_TE.view(NUM_WINDOWS, WINDOW, -1)
    return [
        (window, anchor, guess)
        for window in range(NUM_WINDOWS)
        for anchor in range(WINDOW)
        for guess, expected in enumerate(_alone(formula, ids_BW[window], states_BWE[window], anchor))
        if not torch.allclose(chains_JBWE[guess, window, anchor].double(), expected, rtol=1e-4, atol=1e-4)
    ]


@pytest.mark.parametrize("num_kv_heads, window", [(1, None), (2, None), (4, None), (2, 1), (2, 2), (2, 4)])
def test_chains_together_equal_each_chain_alone(num_kv_heads: int, window: int | None) -> None:
    assert _wrong(random_head(num_kv_heads=num_kv_heads, window=window)) == []


@pytest.mark.parametrize("fault", ["one key too many", "one key too few", "the current token", "another chain", "no step"])
def test_planted_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    visible, attend = ChainContext._visible, ChainContext.attend
    anchor = torch.arange(WINDOW)
    distance = anchor[:, None] - anchor[None, :]
    if fault == "one key too many":  # the state after the anchor: a guess of it would know what it guesses
        monkeypatch.setattr(ChainContext, "_visible", lambda *_: distance >= -1)
    elif fault == "one key too few":
        monkeypatch.setattr(ChainContext, "_visible", lambda self, guess, window: visible(self, guess, window) & (distance != 1))
    elif fault == "the current token":
        monkeypatch.setattr(eagle_task, "following", lambda ids_BW, count: following(ids_BW, count - 1) if count > 1 else ids_BW)
    elif fault == "another chain":  # the earlier guesses of the anchor before

        def shifted(self: ChainContext, *arguments: object) -> Tensor:
            out: Tensor = attend(self, *arguments)
            self._keys[1:] = [(keys.roll(1, dims=1), values.roll(1, dims=1)) for keys, values in self._keys[1:]]
            return out

        monkeypatch.setattr(ChainContext, "attend", shifted)
    else:  # every guess at the anchor's own position

        def still(self: ChainContext, *arguments: object) -> Tensor:
            self.positions_T = torch.arange(WINDOW).repeat(NUM_WINDOWS) - len(self._keys)
            return attend(self, *arguments)

        monkeypatch.setattr(ChainContext, "attend", still)
    assert _wrong(random_head()) != []


def test_the_following_token_ends_with_the_window() -> None:
    ids_BW = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert following(ids_BW, 1).tolist() == [[2, 3, 3], [5, 6, 6]]
    assert following(ids_BW, 2).tolist() == [[3, 3, 3], [6, 6, 6]]
