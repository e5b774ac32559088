"""Draft chains that are unrolled at every position of a sequence at once equal each chain run alone."""

from __future__ import annotations

import pytest
import torch
from tests.layers.eagle_formula import VOCAB_SIZE, Formula, random_head
from torch import Tensor

from hasten.layers.eagle import EagleHead
from hasten.training import eagle_task
from hasten.training.chain_context import ChainContext
from hasten.training.eagle_task import shifted_ids

NUM_SEQUENCES, SEQ_LEN, STEPS = 2, 7, 4


def _inputs(head: EagleHead) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids_BS = torch.randint(VOCAB_SIZE, (NUM_SEQUENCES, SEQ_LEN), generator=generator)
    return ids_BS, torch.randn(NUM_SEQUENCES * SEQ_LEN, head.spec.hidden_size, generator=generator)


def _all_chains(head: EagleHead, ids_BS: Tensor, hidden_TE: Tensor) -> Tensor:
    context = ChainContext(head.ops, head.rotary, NUM_SEQUENCES, SEQ_LEN)
    chains = []
    for step in range(STEPS):
        hidden_TE = head.run(hidden_TE, eagle_task.shifted_ids(ids_BS, step + 1).flatten(), context.positions_T, context)
        chains.append(hidden_TE.view(NUM_SEQUENCES, SEQ_LEN, -1))
    return torch.stack(chains)


def _one_chain(formula: Formula, ids_S: Tensor, states_SE: Tensor, anchor: int) -> list[Tensor]:
    """Return the hidden states of one chain's draft tokens, each computed from the full sequence."""
    sequence, drafted = states_SE[: anchor + 1].double(), []
    while len(drafted) < STEPS and anchor + len(drafted) + 1 < SEQ_LEN:
        drafted.append(formula.draft(sequence, ids_S[1 : len(sequence) + 1])[-1])
        sequence = torch.cat((sequence, drafted[-1][None]))
    return drafted


def _mismatches(head: EagleHead) -> list[tuple[int, int, int]]:
    """Return (sequence, anchor, step) of every draft token that differs."""
    ids_BS, hidden_TE = _inputs(head)
    chains_JBSE = _all_chains(head, ids_BS, hidden_TE)
    formula, states_BSE = Formula.of(head), hidden_TE.view(NUM_SEQUENCES, SEQ_LEN, -1)
    return [
        (sequence, anchor, step)
        for sequence in range(NUM_SEQUENCES)
        for anchor in range(SEQ_LEN)
        for step, expected in enumerate(_one_chain(formula, ids_BS[sequence], states_BSE[sequence], anchor))
        if not torch.allclose(chains_JBSE[step, sequence, anchor].double(), expected, rtol=1e-4, atol=1e-4)
    ]


@pytest.mark.parametrize("num_kv_heads, window", [(1, None), (2, None), (4, None), (2, 1), (2, 2), (2, 4)])
def test_chains_together_equal_each_chain_alone(num_kv_heads: int, window: int | None) -> None:
    assert _mismatches(random_head(num_kv_heads=num_kv_heads, window=window)) == []


@pytest.mark.parametrize(
    "fault", ["one key too many", "one key too few", "current token", "another chain's keys", "fixed position"]
)
def test_planted_faults_are_detected(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    visible, attend = ChainContext._visible_states, ChainContext.attend
    anchor = torch.arange(SEQ_LEN)
    distance = anchor[:, None] - anchor[None, :]
    if fault == "one key too many":  # the state after the anchor, which depends on the token to draft
        monkeypatch.setattr(ChainContext, "_visible_states", lambda *_: distance >= -1)
    elif fault == "one key too few":
        monkeypatch.setattr(
            ChainContext, "_visible_states", lambda self, step, window: visible(self, step, window) & (distance != 1)
        )
    elif fault == "current token":
        monkeypatch.setattr(
            eagle_task, "shifted_ids", lambda ids_BS, offset: shifted_ids(ids_BS, offset - 1) if offset > 1 else ids_BS
        )
    elif fault == "another chain's keys":  # the earlier draft tokens of the previous anchor

        def attend_shifted(self: ChainContext, *arguments: object) -> Tensor:
            out: Tensor = attend(self, *arguments)
            self._keys_values[1:] = [(keys.roll(1, dims=1), values.roll(1, dims=1)) for keys, values in self._keys_values[1:]]
            return out

        monkeypatch.setattr(ChainContext, "attend", attend_shifted)
    else:  # every draft token at its anchor's position

        def attend_in_place(self: ChainContext, *arguments: object) -> Tensor:
            self.positions_T = torch.arange(SEQ_LEN).repeat(NUM_SEQUENCES) - len(self._keys_values)
            return attend(self, *arguments)

        monkeypatch.setattr(ChainContext, "attend", attend_in_place)
    assert _mismatches(random_head()) != []


def test_shifted_ids_repeat_the_last_token() -> None:
    ids_BS = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert shifted_ids(ids_BS, 1).tolist() == [[2, 3, 3], [5, 6, 6]]
    assert shifted_ids(ids_BS, 2).tolist() == [[3, 3, 3], [6, 6, 6]]
