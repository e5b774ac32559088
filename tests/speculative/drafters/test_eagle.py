"""An EAGLE head keeps the newest hidden states pending, up to a bound."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.speculative.cost_model import CostModel
from hasten.speculative.drafters import eagle
from hasten.speculative.drafters.base import ComputedSpan, DraftRequest, TargetOutput
from hasten.speculative.drafters.eagle import TOTAL_PENDING, Eagle

MAX_PENDING, CHUNK = 16, 7  # pending states of a sequence, and tokens of a step
PARAMS = SamplingParams(temperature=0.0, max_tokens=20)


class RecordingRunner:
    """An EAGLE runner that records its input. A hidden state is (sequence, position)."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def fuse(self, states_TF: Tensor) -> Tensor:
        return states_TF

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs.append(hidden_TE.clone())
        return hidden_TE, torch.zeros(sum(row.num_logits for row in rows), 8)

    def token_ids(self, columns: Tensor) -> Tensor:
        return columns


def test_the_newest_states_of_a_long_prompt_are_kept() -> None:
    for length in range(2, 60):
        runner, (request,), drafter = observed_prompts([length])
        (draft,) = drafter.draft([request])
        assert draft, f"no draft after a prompt of {length} tokens"
        positions = runner.inputs[0][:, 1].tolist()
        assert positions == list(range(length - len(positions), length)), "states up to the last one, without a gap"
        assert len(positions) == length if length <= MAX_PENDING else MAX_PENDING // 2 <= len(positions) <= MAX_PENDING


@pytest.mark.parametrize("num_sequences", [2, 3, 9])
def test_all_sequences_together_keep_a_bounded_number(num_sequences: int) -> None:
    runner, requests, drafter = observed_prompts([12] * num_sequences)
    assert all(drafter.draft(requests))
    states = torch.cat(runner.inputs[:1])
    assert len(states) <= TOTAL_PENDING * MAX_PENDING
    assert {int(state[0]) for state in states} == set(range(num_sequences)), "the last states of each sequence are there"


def test_the_time_of_a_prefill_does_not_count_as_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise no draft would seem to pay, and none would be measured."""
    monkeypatch.setattr(eagle, "MIN_PREFILL", 8)
    runner, requests, drafter = observed_prompts([15])
    monkeypatch.setattr(eagle.time, "perf_counter", lambda: float(sum(map(len, runner.inputs))))  # a second for each token
    assert drafter.draft(requests)
    assert [len(tokens) for tokens in runner.inputs[:2]] == [15, 3], "the two most likely nodes were expanded"
    assert drafter.round_seconds(1, 1) is not None and (drafter.round_seconds(1, 1) or 0.0) <= 9


@pytest.mark.parametrize(("length", "seconds"), [(15, None), (5, 5.0)])
def test_with_drafts_of_one_token_a_short_prefill_gives_the_cost_of_a_call(
    length: int, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eagle, "MIN_PREFILL", 8)
    runner, requests, drafter = observed_prompts([length])
    monkeypatch.setattr(eagle.time, "perf_counter", lambda: float(sum(map(len, runner.inputs))))
    drafter.num_tokens = 1
    assert drafter.draft(requests)
    assert drafter.round_seconds(1, 1) == seconds


def observed_prompts(lengths: Sequence[int]) -> tuple[RecordingRunner, list[DraftRequest], Eagle]:
    """Return requests with prompts of these lengths, computed in chunks, and one token after each."""
    runner, kv = RecordingRunner(), KvCacheManager((KvGroup((0,), 1, 4),), 200, 4)
    drafter = Eagle(
        runner, kv, costs=CostModel({1: 1.0, 64: 1.0}), aux_layer_indices=(3,), max_positions=100, max_pending=MAX_PENDING
    )
    prompts = [tuple(range(length)) for length in lengths]
    core_requests = [Request(request_id=str(i), prompt_token_ids=prompt, params=PARAMS) for i, prompt in enumerate(prompts)]
    requests = [DraftRequest(i, [*prompt, 1], core_requests[i], 0) for i, prompt in enumerate(prompts)]
    for start in range(0, max(lengths), CHUNK):
        computed, states = [], []
        for i, length in enumerate(lengths):
            positions = range(start, min(start + CHUNK, length))
            if positions:
                computed.append(ComputedSpan(requests[i], start, range(len(states), len(states) + len(positions))))
                states += [[float(i), float(position)] for position in positions]
        drafter.observe([], TargetOutput(len(states), computed, lambda sequence_id: True, {3: torch.tensor(states)}))
    return runner, requests, drafter


def test_a_pending_state_does_not_keep_the_memory_of_those_that_were_read() -> None:
    """Other requests draft, and each sequence keeps one state: a view would keep all states of its prompt."""
    _, requests, drafter = observed_prompts([15, 15])
    parent = requests[0]
    drafter._read([(parent, drafter._kv_states[0].num_pending - 1)], num_logits=0)
    state = drafter._kv_states[0]
    assert state.num_pending == 1
    assert sum(tensor.untyped_storage().nbytes() for tensor in state.pending) == sum(tensor.nbytes for tensor in state.pending)


def test_more_sequences_than_pending_states_are_allowed_end_the_oldest() -> None:
    """Halving what is pending of a sequence must not leave one state for ever."""
    num_sequences = TOTAL_PENDING * MAX_PENDING + 5
    _, _, drafter = observed_prompts([1] * num_sequences)
    assert sum(state.num_pending for state in drafter._kv_states.values()) == TOTAL_PENDING * MAX_PENDING
