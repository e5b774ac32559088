"""The draft vocabulary of a draft model: a round trip, and the refusal of what is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.checkpoints.formats.draft_ids import DRAFT_IDS_FILE, read_draft_ids, write_draft_ids
from hasten.core.errors import CheckpointError


def test_a_round_trip(tmp_path: Path) -> None:
    assert read_draft_ids(tmp_path, 10) is None
    write_draft_ids(tmp_path, torch.tensor([0, 3, 9]))
    ids = read_draft_ids(tmp_path, 10)
    assert ids is not None and ids.tolist() == [0, 3, 9] and ids.dtype == torch.int64


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([0, 3, 10]),
        torch.tensor([-1, 3]),
        torch.tensor([3, 3]),
        torch.tensor([5, 3]),
        torch.tensor([[1, 2]]),
        torch.tensor(3),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([1.0, 2.0]),
        torch.zeros(2, dtype=torch.bool),
    ],
    ids=lambda ids: f"{ids.dtype} {ids.tolist()}",
)
def test_ids_that_are_no_vocabulary_are_refused(ids: Tensor, tmp_path: Path) -> None:
    save_file({"draft_ids": ids}, tmp_path / DRAFT_IDS_FILE)
    with pytest.raises(CheckpointError, match=r"not a draft vocabulary: got .*allowed: ids from 0 to 9"):
        read_draft_ids(tmp_path, 10)


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        Path.touch,
        os.mkfifo,
        lambda file: file.symlink_to("nowhere"),
        lambda file: file.symlink_to("/dev/zero"),
        lambda file: file.write_bytes(b"\xff" * 100),
        lambda file: save_file({"other": torch.zeros(2)}, file),
        lambda file: save_file({"draft_ids": torch.tensor([1]), "other": torch.zeros(2)}, file),
    ],
    ids=["folder", "empty", "pipe", "dangling link", "device", "bytes", "other tensor", "two tensors"],
)
def test_a_file_of_another_kind_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / DRAFT_IDS_FILE)
    with pytest.raises(CheckpointError, match=r"draft_ids\.safetensors"):
        read_draft_ids(tmp_path, 10)
