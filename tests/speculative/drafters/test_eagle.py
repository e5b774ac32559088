"""Which of the model's states an EAGLE head keeps for later: the newest, and a bounded number of them."""

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
from hasten.speculative.drafters import eagle
from hasten.speculative.drafters.base import ComputedSpan, DraftRequest, TargetOutput
from hasten.speculative.drafters.eagle import TOGETHER, Eagle
from hasten.speculative.step_costs import StepCosts

MOST, CHUNK = 16, 7  # states that wait of a line, and tokens of a step
PARAMS = SamplingParams(temperature=0.0, max_tokens=20)


class Reader:
    """A head that notes what it reads. A state is its line and its position."""

    def __init__(self) -> None:
        self.read: list[Tensor] = []

    def fuse(self, states_TF: Tensor) -> Tensor:
        return states_TF

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        self.read.append(hidden_TE.clone())
        return hidden_TE, torch.zeros(sum(row.num_logits for row in rows), 8)

    def token_ids(self, columns: Tensor) -> Tensor:
        return columns


def test_of_a_long_prompt_the_newest_states_are_kept_and_read() -> None:
    for length in range(2, 60):
        reader, (line,), drafter = read([length])
        (draft,) = drafter.guess([line])
        assert draft, f"nothing is guessed after a prompt of {length} tokens"
        positions = reader.read[0][:, 1].tolist()
        assert positions == list(range(length - len(positions), length)), "states up to the last one, without a gap"
        assert len(positions) == length if length <= MOST else MOST // 2 <= len(positions) <= MOST


@pytest.mark.parametrize("num_lines", [2, 3, 9])
def test_all_lines_together_keep_a_bounded_number(num_lines: int) -> None:
    reader, lines, drafter = read([12] * num_lines)
    assert all(drafter.guess(lines))
    states = torch.cat(reader.read[:1])
    assert len(states) <= TOGETHER * MOST
    assert {int(state[0]) for state in states} == set(range(num_lines)), "each line's last states are there"


def test_reading_a_long_prompt_is_not_taken_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would ever seem to be worth a call, and none be measured."""
    monkeypatch.setattr(eagle, "LONG", 8)
    reader, lines, drafter = read([15])
    monkeypatch.setattr(eagle.time, "perf_counter", lambda: float(sum(map(len, reader.read))))  # a second for each token
    assert drafter.guess(lines)
    assert [len(tokens) for tokens in reader.read[:2]] == [15, 3], "it was gone on from the two likeliest tokens"
    assert drafter.cost(1, 1) is not None and (drafter.cost(1, 1) or 0.0) <= 9


@pytest.mark.parametrize(("length", "seconds"), [(15, None), (5, 5.0)])
def test_where_only_one_token_is_guessed_a_short_reading_tells_what_that_takes(
    length: int, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eagle, "LONG", 8)
    reader, lines, drafter = read([length])
    monkeypatch.setattr(eagle.time, "perf_counter", lambda: float(sum(map(len, reader.read))))
    drafter.num_tokens = 1
    assert drafter.guess(lines)
    assert drafter.cost(1, 1) == seconds


def read(lengths: Sequence[int]) -> tuple[Reader, list[DraftRequest], Eagle]:
    """Lines whose prompts of so many tokens were computed, a chunk of each a step; the next token of each is there."""
    reader, space = Reader(), KvCacheManager((KvGroup((0,), 1, 4),), 200, 4)
    drafter = Eagle(reader, space, costs=StepCosts({1: 1.0, 64: 1.0}), aux_layer_indices=(3,), max_positions=100, max_waiting=MOST)
    prompts = [tuple(range(length)) for length in lengths]
    requests = [Request(request_id=str(i), prompt_token_ids=prompt, params=PARAMS) for i, prompt in enumerate(prompts)]
    lines = [DraftRequest(i, [*prompt, 1], requests[i], 0) for i, prompt in enumerate(prompts)]
    for start in range(0, max(lengths), CHUNK):
        computed, states = [], []
        for i, length in enumerate(lengths):
            positions = range(start, min(start + CHUNK, length))
            if positions:
                computed.append(ComputedSpan(lines[i], start, range(len(states), len(states) + len(positions))))
                states += [[float(i), float(position)] for position in positions]
        drafter.watch([], TargetOutput(len(states), computed, lambda sequence_id: True, {3: torch.tensor(states)}))
    return reader, lines, drafter
