"""Saved states: what is read back is what was written, and whatever is damaged gives one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hasten.core.errors import CheckpointError, InvalidOption
from hasten.prompts.hard_prompt.search_state import MAX_FINALISTS, Finalist, SearchState, StateFolder

TENSORS = {"ids_L": torch.tensor([4, 5]), "prompt_LE": torch.tensor([[0.5, 1e-30], [2.0, 3.0]])}
STATE = SearchState(3, TENSORS, (Finalist((4, 5), 0.1), Finalist((9, 0), 1 / 3)), 77)


def load(folder: Path, like: SearchState = STATE) -> SearchState | None:
    return StateFolder(folder, "digest").load(like, max_step=5, vocab_size=10)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert load(tmp_path / "run") is None
    folder = StateFolder(tmp_path / "run", "digest")
    folder.save(SearchState(2, TENSORS, STATE.finalists[:1], 5))
    folder.save(STATE)
    found = load(tmp_path / "run")
    assert found is not None and (found.step, found.finalists, found.num_tokens) == (3, STATE.finalists, 77)
    assert found.tensors.keys() == TENSORS.keys() and all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)
    with pytest.raises(InvalidOption, match="unfinished run with other settings"):
        StateFolder(tmp_path / "run", "other")


def test_the_best_finalists_are_kept_in_order() -> None:
    state = SearchState(0, {}, (), 0)
    for number, loss in enumerate([5.0, 3.0, 4.0, 1.0, 2.0, 9.0]):
        state = SearchState(0, {}, state.best_with(Finalist((number,), loss)), 0)
    assert [one.loss for one in state.finalists] == [1.0, 2.0, 3.0, 4.0] and len(state.finalists) == MAX_FINALISTS


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 6},
        {"step": True},
        {"step": None},
        {"num_tokens": -1},
        {"num_tokens": 1.5},
        {"finalists": []},
        {"finalists": None},
        {"finalists": [[[4, 5], 0.1]] * 5},
        {"finalists": [[[4, 5]]]},
        {"finalists": [[[4, 10], 0.1]]},
        {"finalists": [[[4], 0.1]]},
        {"finalists": [[[4, 5], "0.1"]]},
        {"finalists": [[[4, 5], float("nan")]]},
        {"finalists": [{"ids": [4, 5]}]},
        {"tensors": 3},
        {"tensors": "../../other"},
    ],
    ids=str,
)
def test_a_damaged_value_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    StateFolder(tmp_path / "run", "digest").save(STATE)
    file = tmp_path / "run" / ".resume" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"the saved state in .* is damaged"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    "tensors",
    [
        {"ids_L": TENSORS["ids_L"]},
        TENSORS | {"more": torch.tensor([1])},
        TENSORS | {"ids_L": torch.tensor([4])},
        TENSORS | {"ids_L": torch.tensor([4.0, 5.0])},
        TENSORS | {"ids_L": torch.tensor([4, 10])},
        TENSORS | {"ids_L": torch.tensor([4, -1])},
        TENSORS | {"prompt_LE": torch.tensor([[0.5, torch.nan], [2.0, 3.0]])},
    ],
)
def test_a_damaged_tensor_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    StateFolder(tmp_path / "run", "digest").save(STATE)
    save_file(tensors, tmp_path / "run" / ".resume" / "step-00000003.safetensors")
    with pytest.raises(CheckpointError, match="its tensors do not fit this search"):
        load(tmp_path / "run")
