"""Damaged GGUF files: whatever bytes change, reading gives a checkpoint or a ``CheckpointError``, in little memory and time."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFWriter
from tests.exhaustive import repeats
from tests.fuzz.gguf_mutations import damage_header
from tests.gguf_files import write_gguf

from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.models.family import find_family

MAX_BYTES, MAX_SECONDS = 4_000_000, 2.0  # of a file of 150 kB


def read_all(path: Path) -> None:
    """Read everything that a load reads."""
    checkpoint = Checkpoint.open(path)
    spec = find_family(checkpoint.config).spec(checkpoint.config, max_layers=len(checkpoint.tensors))
    if spec.layers[0].attention.rotary is not None:
        spec.layers[0].attention.rotary.inverse_frequencies()
    for name in checkpoint.tensors:
        checkpoint.read(name).float()
    for matrix in checkpoint.matrices.values():
        matrix.rows(0, min(matrix.shape[0], 8)).dequantize()
        matrix.rows(max(matrix.shape[0] - 8, 0), matrix.shape[0])


def outcome_of(path: Path, seed: int) -> str:
    try:
        read_all(path)
    except CheckpointError as error:
        return type(error).__name__ if len(str(error)) <= 2000 and str(error).isprintable() else repr(error)
    except Exception as error:
        pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
    return "read"


@pytest.fixture
def original(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    def add_tokenizer(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"token {i}" for i in range(101)])
        writer.add_token_scores([float(i) for i in range(101)])
        writer.add_token_types([1] * 101)
        writer.add_token_merges([f"a b{i}" for i in range(50)])

    types = {"*q_proj*": "Q4_0", "*gate*": "Q4_1", "*up*": "Q5_1", "*v_proj*": "F16", "*": "Q8_0"}
    write_gguf(tmp_path / "original.gguf", tiny("llama-llama3"), types, edit=add_tokenizer)
    return tmp_path / "original.gguf"


def test_damaged_files_give_checkpoint_errors_only(original: Path, tmp_path: Path) -> None:
    content, path = original.read_bytes(), tmp_path / "damaged.gguf"
    header = min(tensor.start for tensor in GgufFile.open(original).tensors.values())
    assert header < len(content) // 2
    read_all(original)
    outcomes: dict[str, int] = {}
    tracemalloc.start()
    try:
        for seed in range(repeats("gguf damage")):
            path.write_bytes(damage_header(content, header, random.Random(seed)))
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.process_time()
            outcome = outcome_of(path, seed)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            assert tracemalloc.get_traced_memory()[1] - before < MAX_BYTES, seed
            assert time.process_time() - start < MAX_SECONDS, seed
    finally:
        tracemalloc.stop()
    assert outcomes["CheckpointError"] > sum(outcomes.values()) // 4
    assert outcomes.keys() == {"read", "CheckpointError", "UnsupportedModel"}


def test_every_short_prefix_of_the_header_is_refused(original: Path, tmp_path: Path) -> None:
    content, path = original.read_bytes(), tmp_path / "cut.gguf"
    for length in range(0, 3_000, 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            GgufFile.open(path)
