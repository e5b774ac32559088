"""Weights are as readable as any new file, so that a server may run as another user than the one who made them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hasten.checkpoints.write_tensors import write_tensors


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_file_has_the_permissions_that_the_user_gives_new_files(tmp_path: Path, umask: int) -> None:
    file = tmp_path / "model.safetensors"
    write_tensors({"a": torch.arange(6.0).view(2, 3)}, file)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
    with safe_open(file, "pt") as stored:
        assert stored.metadata() == {"format": "pt"}
        assert stored.get_tensor("a").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    file.chmod(0o640)
    write_tensors({"a": torch.zeros(2)}, file)
    assert file.stat().st_mode & 0o777 == 0o640
