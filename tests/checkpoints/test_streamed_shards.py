"""A streamed file is one that the safetensors library and hasten read, and equals the tensors that went in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hasten.checkpoints.shards import TensorEntry, read_header, read_shards
from hasten.checkpoints.streamed_shards import write_index, write_shard

TENSORS = {
    "bytes": torch.arange(5, dtype=torch.uint8),
    "fp8": torch.linspace(-3, 3, 7).to(torch.float8_e4m3fn),
    "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half(),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "words": torch.arange(6, dtype=torch.int32).view(2, 3),
    'an "odd" näme': torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
}


def entries_of(tensors: dict[str, Tensor], folder: Path) -> list[TensorEntry]:
    """Return the entries as the library's own writer makes them."""
    save_file(tensors, folder / "reference.safetensors")
    return list(read_header(folder / "reference.safetensors"))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_library_reads_it_back(tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.safetensors"
    write_shard(file, entries_of(TENSORS, tmp_path)[::-1], lambda entry: torch.split(TENSORS[entry.name].flatten(), size))
    stored = load_file(file)
    assert stored.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert stored[name].dtype == tensor.dtype and stored[name].shape == tensor.shape
        assert torch.equal(stored[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    header_size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + header_size])
    assert header_size % 8 == 0
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0
    assert set(read_shards(tmp_path)) == TENSORS.keys()


def test_a_wrong_number_of_values_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="words"):
        write_shard(
            tmp_path / "model.safetensors",
            entries_of({"words": TENSORS["words"]}, tmp_path),
            lambda entry: [TENSORS["words"].flatten()[1:]],
        )


def test_an_index_over_two_files(tmp_path: Path) -> None:
    entries = entries_of(TENSORS, tmp_path)
    split = [TensorEntry(e.name, tmp_path / f"part-{i % 2}.safetensors", e.dtype, e.shape, e.nbytes) for i, e in enumerate(entries)]
    for file in {entry.file for entry in split}:
        write_shard(file, [entry for entry in split if entry.file == file], lambda entry: [TENSORS[entry.name]])
    write_index(tmp_path, split)
    assert read_shards(tmp_path) == {entry.name: entry for entry in split}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
