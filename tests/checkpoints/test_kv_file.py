"""Files of saved KV blocks: other readers understand them, and no damaged byte goes unnoticed."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hasten.checkpoints import shards
from hasten.checkpoints.kv_file import SOURCE_FIELDS, KvSource, open_kv_file, write_kv_file
from hasten.core.errors import HastenError, KvFileError

SOURCE = KvSource(
    weights="0" * 64,  # as the checksum is while the file is written
    dtype="float32",
    quantization="none",
    activations="auto",
    kv_cache_dtype="float32",
    block_size="4",
    groups="layers 0,1: 2 heads of 8",
    rotary="none",
    kernels="native avx2",
    library="1" * 64,
    hasten="0.1.0",
)
TOKENS = [5, 2**40, 7, 8, 9, 10, 11, 12]
SHAPES = [(2, 2, 6), (1, 0, 3), (3, 1, 7)]  # layers, blocks, bytes; a window of one token needs no block
DATA = [torch.arange(layers * blocks * size, dtype=torch.uint8).reshape(layers, blocks, size) for layers, blocks, size in SHAPES]


def write(path: Path, model: str = "demo") -> None:
    write_kv_file(path, model, SOURCE, TOKENS, SHAPES, lambda group, layer, out: out.copy_(DATA[group][layer]))


def read(path: Path) -> list[list[Tensor]]:
    """Return the layers of each group. Raises ``HastenError``."""
    groups: list[list[Tensor]] = [[torch.empty(0)] * layers for layers, _, _ in SHAPES]
    with open_kv_file(path) as file:
        SOURCE.check(file.source, str(path))
        file.check_shapes(len(TOKENS), SHAPES)
        assert file.token_ids() == TOKENS
        file.load(lambda group, layer, data: groups[group].__setitem__(layer, data.clone()))
    return groups


def test_a_file_has_what_was_written(tmp_path: Path) -> None:
    write(tmp_path / "x")
    for group, data in zip(read(tmp_path / "x"), DATA, strict=True):
        assert torch.equal(torch.stack(group), data)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
    with open_kv_file(tmp_path / "x") as file:
        facts = file.facts
    assert (facts.model, facts.num_tokens, facts.num_blocks, facts.kernels) == ("demo", 8, 2 + 0 + 1, "native avx2")
    assert facts.num_bytes == (tmp_path / "x").stat().st_size


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata().items() >= {"format": "hasten-kv", "version": "1", "model": "demo", "block_size": "4"}.items()
        assert file.get_tensor("token_ids").tolist() == TOKENS
        assert all(torch.equal(file.get_tensor(f"group.{i}"), data) for i, data in enumerate(DATA))


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path, rng = tmp_path / "x", random.Random(3)
    write(path)
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= rng.choice([1, 2, 32, rng.randrange(1, 256)])  # 32 changes the case of a letter
        path.write_bytes(changed)
        with pytest.raises((HastenError, AssertionError)):  # the token ids differ before the checksum is known
            read(path)


def test_every_truncation_and_extension_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(KvFileError, match=r"is not a complete file of KV blocks: got .+\. Save the prefix again\."):
            read(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(KvFileError, match="its tensors need"):
        read(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with open_kv_file(tmp_path / "x") as file:
        os.truncate(tmp_path / "x", file.facts.num_bytes - 1)
        with pytest.raises(KvFileError, match="became shorter while it was read"):
            file.load(lambda group, layer, data: None)


@pytest.mark.parametrize("name", SOURCE_FIELDS)
def test_a_file_of_another_source_is_refused_with_both_values(name: str, tmp_path: Path) -> None:
    write(tmp_path / "x")
    values = {field: getattr(SOURCE, field) for field in SOURCE_FIELDS} | {name: "something else"}
    with open_kv_file(tmp_path / "x") as file, pytest.raises(KvFileError) as caught:
        KvSource(**values).check(file.source, "x")
    assert (caught.value.got, caught.value.allowed) == (f"{name}={getattr(SOURCE, name)}", f"{name}=something else")


def test_all_differences_are_in_one_error() -> None:
    other = KvSource(**{field: getattr(SOURCE, field) for field in SOURCE_FIELDS} | {"dtype": "bfloat16", "block_size": "16"})
    with pytest.raises(KvFileError, match=r"got dtype=bfloat16, block_size=16; allowed: dtype=float32, block_size=4\."):
        SOURCE.check(other, "x")


def test_other_tensors_than_those_of_the_engine_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with open_kv_file(tmp_path / "x") as file:
        for num_tokens, shapes in ((4, SHAPES), (8, SHAPES[:2]), (8, [(2, 2, 5), *SHAPES[1:]]), (8, [*SHAPES, (1, 1, 1)])):
            with pytest.raises(KvFileError, match="has other tensors than its metadata says"):
                file.check_shapes(num_tokens, shapes)


METADATA = {**dict.fromkeys(SOURCE_FIELDS, "x"), "format": "hasten-kv", "version": "1", "model": "m", "checksum": "0" * 64}
TENSORS = {"token_ids": {"dtype": "I64", "shape": [0], "data_offsets": [0, 0]}}


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"__metadata__": METADATA},
        TENSORS,
        {"__metadata__": None, **TENSORS},
        {"__metadata__": [1], **TENSORS},
        {"__metadata__": METADATA | {"format": "pt"}, **TENSORS},
        {"__metadata__": METADATA | {"format": ["hasten-kv"]}, **TENSORS},
        {"__metadata__": METADATA | {"version": "2"}, **TENSORS},
        {"__metadata__": METADATA | {"weights": 3}, **TENSORS},
        {"__metadata__": METADATA | {"model": "a\nb"}, **TENSORS},
        {"__metadata__": METADATA | {"checksum": "\ud800"}, **TENSORS},
        {"__metadata__": METADATA | {"rotary": "x" * 100_000}, **TENSORS},
        {"__metadata__": METADATA, "token_ids": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}},
        {"__metadata__": METADATA, "token_ids": {"dtype": "I64", "shape": [0, 1], "data_offsets": [0, 0]}},
        {"__metadata__": METADATA, "group.0": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
    ],
)
def test_a_header_that_is_not_of_this_format_is_one_error(header: dict[str, object], tmp_path: Path) -> None:
    content = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(KvFileError, match="is not a complete file of KV blocks"), open_kv_file(tmp_path / "x"):
        pass


def test_a_header_of_many_tensors_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred megabytes of JSON would keep the engine busy for a minute."""
    monkeypatch.setattr(shards, "parse_json", None)
    for num_bytes, error in ((2**20 + 1, KvFileError), (2**20, TypeError)):
        (tmp_path / "x").write_bytes(num_bytes.to_bytes(8, "little") + b" " * num_bytes)
        with pytest.raises(error, match=r"the header has 1,048,577 bytes and may have 1,048,576|not callable"):
            read(tmp_path / "x")


def test_what_is_no_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "folder", "pipe", "a\0b"):
        with pytest.raises(KvFileError), open_kv_file(tmp_path / name):
            pass


def test_control_characters_of_a_model_name_are_escaped(tmp_path: Path) -> None:
    write(tmp_path / "x", "a\x1b\udcff")
    with open_kv_file(tmp_path / "x") as file:
        assert file.facts.model == r"a\x1b\udcff"
