"""``merge_shards``: safetensors and transformers read what it writes, whatever the sizes of the shards."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hasten.checkpoints import merge_shards as module
from hasten.checkpoints.merge_shards import merge_shards
from hasten.checkpoints.shards import read_shards
from hasten.core.errors import CheckpointError

DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.int64, torch.float8_e4m3fn, torch.int8, torch.float16, torch.int32)


def _tensors(count: int = 24) -> dict[str, Tensor]:
    """Return tensors of many dtypes and sizes; some are empty, some have no dimension."""
    draw = torch.Generator().manual_seed(count)
    tensors = {}
    for index in range(count):
        shape = ((3, 5), (7,), (), (0, 4))[index % 4]
        size = torch.empty(shape).numel() * DTYPES[index % len(DTYPES)].itemsize
        values = torch.randint(0, 126, (size,), generator=draw, dtype=torch.uint8)
        tensors[f"layer.{index}.weight"] = values.view(DTYPES[index % len(DTYPES)]).reshape(shape)
    return tensors


def _write(folder: Path, tensors: dict[str, Tensor], files: int) -> list[Path]:
    names = list(tensors)
    paths = [folder / f"{index}.part" for index in range(files)]
    for index, path in enumerate(paths):
        save_file({name: tensors[name] for name in names[index::files]}, path)
    return paths


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("files", [1, 5])
@pytest.mark.parametrize("max_bytes", [1, 50, 130, 10**9])
def test_safetensors_reads_every_tensor(files: int, max_bytes: int, tmp_path: Path) -> None:
    tensors, folder = _tensors(), tmp_path / "merged"
    folder.mkdir()
    merge_shards(_write(tmp_path, tensors, files), folder, max_bytes)
    shards = sorted(folder.glob("*.safetensors"))
    found: dict[str, Tensor] = {}
    for shard in shards:
        loaded = load_file(shard)
        assert sum(tensor.nbytes for tensor in loaded.values()) <= max_bytes or len(loaded) == 1
        with safe_open(shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
        found |= loaded
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape, _bytes(found[name])) == (tensor.dtype, tensor.shape, _bytes(tensor)), name
    assert read_shards(folder).keys() == tensors.keys()
    total = sum(tensor.nbytes for tensor in tensors.values())
    if max_bytes > total:
        assert [shard.name for shard in shards] == ["model.safetensors"] and len(list(folder.iterdir())) == 1
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == total
        assert index["weight_map"] == {name: shard.name for shard in shards for name in load_file(shard)}
        assert [shard.name for shard in shards] == [
            f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)
        ]


@pytest.mark.parametrize("max_bytes", [1, 130, 10**9])
def test_tensors_are_aligned_and_runs_give_the_same_bytes(max_bytes: int, tmp_path: Path) -> None:
    files = _write(tmp_path, _tensors(), 3)
    contents = []
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        merge_shards(files, tmp_path / run, max_bytes)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / run).iterdir()})
    assert contents[0] == contents[1]
    for name, content in contents[0].items():
        if name.endswith(".safetensors"):
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])
            assert length % 8 == 0
            for entry in (value for key, value in header.items() if key != "__metadata__"):
                start, stop = entry["data_offsets"]
                assert start % ((stop - start) // max(1, torch.empty(entry["shape"]).numel()) or 1) == 0


def test_transformers_reads_the_shards(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny("llama-gqa")
    expected = AutoModelForCausalLM.from_pretrained(source)
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    merge_shards([source / "model.safetensors"], folder, 60_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 4
    found = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert all(torch.equal(found[name], value) for name, value in expected.named_parameters())


def test_tensors_are_not_loaded(tmp_path: Path) -> None:
    save_file({"large": torch.zeros(2**24)}, tmp_path / "large.part")
    (tmp_path / "merged").mkdir()
    tracemalloc.start()
    try:
        merge_shards([tmp_path / "large.part"], tmp_path / "merged")
        assert tracemalloc.get_traced_memory()[1] < 3 * module.CHUNK_BYTES
    finally:
        tracemalloc.stop()
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 2**26


def test_files_and_folder_are_on_the_disk_on_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    folder = tmp_path / "merged"
    folder.mkdir()
    merge_shards(_write(tmp_path, _tensors(), 2), folder, 130)
    assert sorted(synced[:-1]) == sorted(str(path) for path in folder.iterdir())
    assert synced[-1] == str(folder)


def test_damaged_files_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    files = _write(tmp_path, _tensors(), 4)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].unlink()
    save_file({"layer.0.weight": torch.zeros(1)}, files[3])
    (tmp_path / "merged").mkdir()
    with pytest.raises(CheckpointError) as error:
        merge_shards(files, tmp_path / "merged")
    message = str(error.value)
    assert "1.part: its tensors need" in message and "2.part is not a readable file" in message
    assert "layer.0.weight is in 0.part and in 3.part" in message
    assert not list((tmp_path / "merged").iterdir())


def test_a_file_that_becomes_shorter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = _write(tmp_path, _tensors(), 1)
    split = module._split

    def shorten(*arguments: object) -> object:
        file.write_bytes(file.read_bytes()[:-9])
        return split(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_split", shorten)
    (tmp_path / "merged").mkdir()
    with pytest.raises(CheckpointError, match=r"0\.part became shorter while it was copied"):
        merge_shards([file], tmp_path / "merged")


def test_an_error_of_the_disk_is_left_to_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        merge_shards(_write(tmp_path, _tensors(), 2), tmp_path / "no folder")
    assert error.value.errno == errno.ENOENT
