"""Damaged quantised checkpoints: hasten reads their matrices, or refuses them by name.

A case damages the files, the tensors or the settings of a checkpoint, opens it and reads every matrix. It ends in finite shapes
that the header promised or in a ``CheckpointError``, in bounded time and memory. A new format is one entry of ``FORMATS``.
"""

from __future__ import annotations

import random
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.shards import write_checkpoint
from hasten.core.errors import CheckpointError
from hasten.layers.formats.stored_matrix import StoredMatrix, dequantize
from tests.fuzz.file_mutations import mutate
from tests.fuzz.report import Report
from tests.fuzz.tensor_mutations import mutate_settings, mutate_tensors
from tests.quantized_checkpoints import write_awq, write_fp8, write_gptq

MAX_PEAK_GROWTH = 256 << 20  # bytes: the checkpoints have less than 1 MB

# Format -> what writes one of its checkpoints, drawn at random, from a float checkpoint.
FORMATS: dict[str, Callable[[Path, Path, random.Random], Any]] = {
    "gptq": lambda folder, source, rng: write_gptq(
        folder,
        source,
        bits=rng.choice([2, 3, 4, 8]),
        symmetric=rng.random() < 0.5,
        desc_act=rng.random() < 0.5,
        version=rng.choice([1, 2]),
    ),
    "awq": lambda folder, source, rng: write_awq(folder, source, zero_point=rng.random() < 0.7),
    "fp8": lambda folder, source, rng: write_fp8(
        folder,
        source,
        block=rng.choice([(32, 32), (24, 40), "channel", "tensor"]),
        scale_dtype=rng.choice([torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu]),
        static=rng.random() < 0.3,
    ),
}
MUTATIONS = (mutate, mutate_tensors, mutate_tensors, mutate_settings)


def run(rng: random.Random, cases: int, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="hasten-fuzz-") as name:
        folder = Path(name)
        source = _write_source(folder)
        peak = _peak_bytes()
        for case_rng in report.each(rng, cases):
            kind = case_rng.choice(sorted(FORMATS))
            damaged = folder / "damaged"
            FORMATS[kind](damaged, source, case_rng)
            what = case_rng.choice(MUTATIONS)(damaged, case_rng)
            report.case = f"{kind}, {what}"
            try:
                for matrix in Checkpoint.open(damaged).matrices.values():
                    _read(matrix)
                report.outcomes["read"] += 1
            except CheckpointError as error:
                report.outcomes[type(error).__name__] += 1
                if "\n" in str(error):
                    report.fail(f"the message has several lines: {error}")
            except Exception as error:
                report.outcomes["fault"] += 1
                report.fail(f"{type(error).__name__}: {error}"[:500])
            shutil.rmtree(damaged)
            if (now := _peak_bytes()) > peak + MAX_PEAK_GROWTH:
                report.fail(f"the peak of memory grew by {(now - peak) >> 20} MiB")
                peak = now


def _read(matrix: StoredMatrix) -> None:
    """Read a matrix in two parts, and check what it promises."""
    outputs, inputs = matrix.shape
    assert matrix.spec.describe()
    assert matrix.nbytes > 0
    order = matrix.input_order()
    assert order is None or torch.equal(order.sort().values, torch.arange(inputs))
    for start, stop in ((0, (outputs + 1) // 2), (outputs // 2, outputs)):
        weights = dequantize(matrix, start, stop)
        assert weights.shape == (stop - start, inputs)
        assert not weights.isnan().any()


def _write_source(folder: Path) -> Path:
    """Write a float checkpoint of a few tensors, with sizes that every width of codes packs."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"q_proj.weight": (64, 96), "q_proj.bias": (64,), "down_proj.weight": (32, 64), "input_layernorm.weight": (96,)}
    tensors = {f"model.layers.0.{name}": torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    write_checkpoint(folder / "float", {**tensors, "lm_head.weight": torch.randn(8, 96, generator=draw)}, {"model_type": "llama"})
    return folder / "float"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
