"""Small quantised checkpoints of a few tensors, and what their matrices mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.layers.formats.stored_matrix import StoredMatrix, dequantize


def store(folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> Path:
    """Write a checkpoint. ``settings`` is its quantization_config."""
    folder.mkdir(exist_ok=True)
    config = {"model_type": "llama", **({"quantization_config": dict(settings)} if settings is not None else {})}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def named(parts: Mapping[str, Tensor], module: str = "m") -> dict[str, Tensor]:
    return {f"{module}.{part}": tensor for part, tensor in parts.items()}


def check_meaning(matrix: StoredMatrix, expected: Tensor) -> None:
    """Compare a matrix with ``expected``, bit for bit, as a whole and in slices of odd sizes."""
    outputs = len(expected)
    assert matrix.shape == tuple(expected.shape)
    for start, stop in {
        (0, outputs),
        (0, 1),
        (outputs - 1, outputs),
        (outputs // 3, outputs // 2 + 1),
        (outputs // 5, outputs - 1),
    }:
        if start >= stop:
            continue
        weights = dequantize(matrix, start, stop)
        assert weights.dtype == torch.float32
        assert torch.equal(weights, expected[start:stop]), (matrix.name, start, stop)


def refusal(folder: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """Return the sentence that refuses a checkpoint when it is opened, or when its matrices are read."""
    with pytest.raises(CheckpointError) as error:
        read_all(folder)
    message = str(error.value)
    assert type(error.value) is kind, message
    assert message.endswith(".")
    assert "\n" not in message
    assert str(folder) in message
    return message


def read_all(folder: Path) -> dict[str, Tensor]:
    """Return every matrix of a checkpoint, dequantised."""
    weights = {}
    for name, matrix in Checkpoint.open(folder).matrices.items():
        assert matrix.spec.describe()
        weights[name] = dequantize(matrix, 0, matrix.shape[0])
    return weights
