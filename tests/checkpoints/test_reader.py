"""``Checkpoint``: a damaged, incomplete or untrusted folder is refused, and the fault is named."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError, ModelNotFound
from hasten.text.read_tokenizer import _check_size as check_tokenizer_size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small valid checkpoint that the test may damage."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    return tmp_path


def _message(folder: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    with pytest.raises(kind) as error:
        Checkpoint.open(folder)
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_a_valid_checkpoint_is_read(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"top_k": 5}')
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.generation_config == {"top_k": 5}
    assert {name: (entry.dtype, entry.shape, entry.nbytes) for name, entry in checkpoint.tensors.items()} == {
        "a": ("F32", (2, 3), 24),
        "b": ("BF16", (5,), 10),
    }
    assert torch.equal(checkpoint.read("a"), torch.arange(6.0).view(2, 3))


def test_every_truncation_is_detected(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        message = _message(folder)
        assert "model.safetensors" in message
        assert f"{length:,}" in message
    file.write_bytes(content + b"\0")
    assert f"{len(content) + 1:,}" in _message(folder)


def _write(file: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    "header, expected",
    [
        (b"{not json", "not JSON"),
        ([1, 2], "not a table"),
        ({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "w: unknown dtype 'F99'"),
        ({"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "w: unknown dtype ['F32']"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "needs 8 bytes and 4 are stored"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, "do not describe a tensor"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "do not describe a tensor"),
        ({"w": {"dtype": "F32", "shape": [1]}}, "not complete"),
        ({"w": 3}, "not complete"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "overlap or leave a gap"),
        (
            {
                "v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            "overlap or leave a gap",
        ),
    ],
)
def test_an_inconsistent_header_is_refused(header: Any, expected: str, folder: Path) -> None:
    _write(folder / "model.safetensors", header, bytes(8 if expected.startswith("overlap") and "v" not in header else 4))
    assert expected in _message(folder)


@pytest.mark.parametrize(
    "shape",
    [[2**63], [2**62, 2**62], [10**400] * 500, [1] * 9, [1, 10**400], [True], [1.0]],
    ids=["2**63", "overflow", "long product", "nine dimensions", "long size", "true", "float"],
)
def test_no_shape_is_too_wrong_to_be_refused(shape: list[Any], folder: Path) -> None:
    _write(folder / "model.safetensors", {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}, bytes(4))
    assert "w: shape" in _message(folder)


@pytest.mark.parametrize("text", [b"{" * 100_000, '{"w": 1}'.encode("utf-16"), b'{"w": 1, "w": 2}', b'\xef\xbb\xbf{"w": 1}'])
def test_the_header_is_one_unambiguous_utf8_text(text: bytes, folder: Path) -> None:
    _write(folder / "model.safetensors", text, bytes(4))
    assert "the header is not JSON" in _message(folder)


def test_a_long_list_of_faults_is_cut(folder: Path) -> None:
    bad = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    _write(folder / "model.safetensors", {f"w{i}": bad for i in range(1000)}, bytes(4))
    message = _message(folder)
    assert "w0" in message and "and 980 more" in message and len(message) < 4000


def test_weights_that_cannot_be_read_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied")
        return path_open(path, *arguments, **options)

    path_open = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    assert "model.safetensors cannot be read (Permission denied)" in _message(folder)


def test_a_file_that_changes_or_vanishes_after_its_header_was_read_is_refused(folder: Path) -> None:
    changed, vanished = Checkpoint.open(folder), Checkpoint.open(folder)
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(5, dtype=torch.bfloat16)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"changed while it was read: got a \[3, 2\]"):
        changed.read("a")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a valid"):
        vanished.read("a")


def test_a_generation_config_that_cannot_be_read_is_not_taken_for_a_missing_one(folder: Path) -> None:
    (folder / "generation_config.json").symlink_to("nowhere")
    assert "generation_config.json cannot be read" in _message(folder)


def test_a_file_that_only_safetensors_refuses_is_refused(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    _write(folder / "model.safetensors", {"__metadata__": {"format": 3}, "w": entry}, bytes(4))
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a valid safetensors file"):
        checkpoint.read("w")


def test_every_faulty_tensor_is_listed(folder: Path) -> None:
    bad = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    _write(folder / "model.safetensors", {"first": bad, "second": bad}, bytes(4))
    message = _message(folder)
    assert "first" in message
    assert "second" in message


@pytest.fixture
def sharded(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    copy = tmp_path / "sharded"
    shutil.copytree(tiny("llama-sharded"), copy)
    assert len(list(copy.glob("*.safetensors"))) > 3
    return copy


def test_missing_and_broken_shards_are_listed_together(sharded: Path) -> None:
    files = sorted(sharded.glob("*.safetensors"))
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-10])
    message = _message(sharded)
    assert f"{files[0].name} is missing" in message
    assert files[2].name in message
    assert files[1].name not in message


def test_a_tensor_that_its_indexed_file_lacks_is_named(sharded: Path) -> None:
    file = sorted(sharded.glob("*.safetensors"))[1]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, file)
    assert f"{name} is not in {file.name}" in _message(sharded)


@pytest.mark.parametrize(
    "index, expected",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a JSON object"),
        ('{"weight_map": {}}', "no valid 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "no valid 'weight_map'"),
        (
            '{"weight_map": {"a": "../secret.safetensors"}}',
            "names files that are not safetensors files of its folder: got ../secret.safetensors",
        ),
        ('{"weight_map": {"a": "' + "x" * 300 + '.safetensors"}}', "is missing"),
        ('{"weight_map": {"a": "x\\u0000.safetensors"}}', "is missing"),
        ('{"weight_map": {"a": "\\ud800.safetensors"}}', "is missing"),
        ('{"weight_map": {"a": ".safetensors/../b.safetensors"}}', "are not safetensors files of its folder"),
        ('{"weight_map": {"a": "model.bin"}}', "names files that are not safetensors files of its folder: got model.bin"),
    ],
)
def test_an_invalid_index_is_refused(index: str, expected: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert expected in _message(folder)


class _Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_a_pickle_is_refused_and_never_read(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(_Trap(folder / "ran"), folder / name)
    message = _message(folder)
    assert name in message
    assert "pickle" in message
    assert "save_pretrained" in message
    assert not (folder / "ran").exists()


def test_a_model_folder_with_gguf_files_instead_of_weights_names_one(folder: Path) -> None:
    """Repositories of GGUF files often hold the original config.json, too."""
    (folder / "model.safetensors").unlink()
    (folder / "small.Q8_0.gguf").touch()
    (folder / "small.Q4_0.gguf").touch()
    with pytest.raises(ModelNotFound, match=rf"Give the GGUF file: {folder}/small\.Q4_0\.gguf"):
        Checkpoint.open(folder)


def test_code_of_the_checkpoint_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoModel": "modeling.py"}}))
    message = _message(folder)
    assert "modeling.py" in message
    assert "never" in message


def test_a_folder_without_a_model_is_refused(folder: Path) -> None:
    assert "nowhere" in _message(folder / "nowhere", ModelNotFound)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "consolidated.safetensors" in _message(folder, ModelNotFound)
    (folder / "config.json").write_text("[]")
    assert "not a JSON object" in _message(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in _message(folder)
    (folder / "config.json").unlink()
    assert "config.json" in _message(folder, ModelNotFound)


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    check_tokenizer_size(100, 100)
    check_tokenizer_size(100, 128)
    with pytest.raises(CheckpointError) as error:
        check_tokenizer_size(32_064, 32_000)
    assert "32,064" in str(error.value)
    assert "32,000" in str(error.value)
