"""``measure_latency``: the decode latency of a shape, on a model with random weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hasten.compress.prune.pruned_config import pruned_config
from hasten.compress.prune.shape import Shape
from hasten.entrypoints.decode_speed import measure_speed
from hasten.models.spec import DecoderSpec
from hasten.training.resume import write_errors
from hasten.training.trainable_model import TrainableModel


def measure_latency(
    config: Mapping[str, Any], spec: DecoderSpec, shape: Shape, dtype: torch.dtype, folder: Path, threads: int | None
) -> float:
    """Return the median milliseconds per token of a model of ``shape`` that decodes at batch 1.

    ``config`` and ``spec`` are those of the unpruned model, and ``dtype`` that of the weights. The model lies in ``folder``
    meanwhile, which is emptied. Raises ``CapacityError`` for a full disk.
    """
    shutil.rmtree(folder, ignore_errors=True)
    sized = dict(config) if shape == Shape.of(spec) else pruned_config(config, shape.apply(spec))[0]
    try:
        with write_errors(folder):
            TrainableModel.new(sized, 0).write(folder, dtype=dtype)
        options = {"show_progress": False} | ({} if threads is None else {"threads": threads})
        return 1000 / measure_speed(str(folder), options).median
    finally:
        shutil.rmtree(folder, ignore_errors=True)
