"""The header of GGUF files: values of every type, split files, and every fault of a hand-made file."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFWriter

from hasten.checkpoints.gguf import container, value_reader
from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.gguf.ggml_types import GGML_TYPES
from hasten.core.errors import CheckpointError, ModelNotFound, UnsupportedModel

VALUES: dict[str, tuple[str, int, Any]] = {  # struct format, type number, value
    "u8": ("B", 0, 200),
    "i8": ("b", 1, -100),
    "u16": ("H", 2, 60_000),
    "i16": ("h", 3, -30_000),
    "u32": ("I", 4, 4_000_000_000),
    "i32": ("i", 5, -2_000_000_000),
    "f32": ("f", 6, 0.5),
    "bool": ("?", 7, True),
    "u64": ("Q", 10, 2**63 + 1),
    "i64": ("q", 11, -(2**62)),
    "f64": ("d", 12, 0.1),
}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: int = 0,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    num_tensors, num_values = counts or (len(tensors), len(entries))
    header = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_values) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + bytes(data)


def opened(path: Path, content: bytes) -> GgufFile:
    path.write_bytes(content)
    return GgufFile.open(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("value", [0.6, 1e-6, 1e-5, 500_000.0, 0.1, -3.4e38, 0.0, float("inf")])
def test_a_float32_is_the_decimal_number_that_was_meant(path: Path, value: float) -> None:
    assert opened(path, gguf_bytes([entry("k", 6, struct.pack("<f", value))])).metadata == {"k": value}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", VALUES)
def test_reads_values_and_arrays_of_every_type(path: Path, name: str, version: int) -> None:
    form, kind, value = VALUES[name]
    entries = [
        entry("one", kind, struct.pack(f"<{form}", value)),
        entry("many", 9, struct.pack(f"<IQ3{form}", kind, 3, value, 0, value)),
        entry("none", 9, struct.pack("<IQ", kind, 0)),
        entry("after", 8, text("é")),
    ]
    metadata = opened(path, gguf_bytes(entries, version=version)).metadata
    assert metadata == {"one": value, "many": [value, 0, value], "none": [], "after": "é"}
    assert type(metadata["one"]) is type(value)


def test_reads_strings_and_arrays_of_strings(path: Path) -> None:
    strings = ["", "a", "é\n", "x" * 1000]
    array = struct.pack("<IQ", 8, 4) + b"".join(text(string) for string in strings)
    metadata = opened(path, gguf_bytes([entry("texts", 9, array), entry("empty", 8, text(""))])).metadata
    assert metadata == {"texts": strings, "empty": ""}


def test_reads_what_the_gguf_package_writes(path: Path) -> None:
    writer, rng = GGUFWriter(path, "llama"), np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {"a": (3, 5), "b": (7,), "c": (2, 3, 4)}.items()}
    writer.add_custom_alignment(64)
    writer.add_token_list(["<s>", "b"])
    writer.add_bool("flag", True)
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file, content = GgufFile.open(path), path.read_bytes()
    assert file.metadata == {
        "general.architecture": "llama",
        "general.alignment": 64,
        "tokenizer.ggml.tokens": ["<s>", "b"],
        "flag": True,
    }
    for name, values in arrays.items():
        stored = file.tensors[name]
        assert (stored.shape, stored.type.name) == (values.shape, "F32")
        assert content[stored.start : stored.start + stored.nbytes] == values.tobytes()


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    sizes = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    del sizes[9]  # the package gives Q8_1, which no file holds, the size of an older ggml
    newer = {42}
    assert {number: (t.name, t.weights, t.nbytes) for number, t in GGML_TYPES.items() if number in sizes} == sizes
    assert GGML_TYPES.keys() - sizes.keys() == {9, *newer}


def test_a_large_vocabulary_takes_well_under_a_second(path: Path) -> None:
    tokens = b"".join(text(f"token{i}") for i in range(150_000))
    merges = b"".join(text(f"a{i} b{i}") for i in range(300_000))
    entries = [
        entry("tokens", 9, struct.pack("<IQ", 8, 150_000) + tokens),
        entry("merges", 9, struct.pack("<IQ", 8, 300_000) + merges),
        entry("scores", 9, struct.pack("<IQ", 6, 150_000) + bytes(600_000)),
    ]
    path.write_bytes(gguf_bytes(entries))
    start = time.process_time()
    file = GgufFile.open(path)
    assert time.process_time() - start < 1.0  # 0.1 s on a machine of 2024
    assert [len(values) for values in file.metadata.values()] == [150_000, 300_000, 150_000]


HUGE = 2**64 - 1
ONE_F32 = tensor("t", [8], 0, 0)
FAULTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "does not begin with 'GGUF'"),
    "other magic": (b"GGML" + bytes(100), "does not begin with 'GGUF'"),
    "only the magic": (b"GGUF", "ends within its header"),
    "many tensors": (gguf_bytes(counts=(HUGE, 0)), "tensors and ends before them"),
    "many values": (gguf_bytes(counts=(0, HUGE)), "metadata values and ends before them"),
    "long key": (gguf_bytes([struct.pack("<Q", HUGE) + b"key" + bytes(40)]), "bytes of a metadata key"),
    "key beyond the limit": (gguf_bytes([entry("k" * 70_000, 4, bytes(4))]), "at most 65,535"),
    "key of other bytes": (gguf_bytes([text(b"\xff\xfe") + struct.pack("<II", 4, 1)]), "not UTF-8"),
    "value of other bytes": (gguf_bytes([entry("k", 8, text(b"\xff\xfe"))]), "not UTF-8"),
    "item of other bytes": (gguf_bytes([entry("k", 9, struct.pack("<IQ", 8, 1) + text(b"\xff"))]), "not UTF-8"),
    "same key twice": (gguf_bytes([entry("k", 4, bytes(4))] * 2), "occurs twice"),
    "unknown value type": (gguf_bytes([entry("k", 13, bytes(8))]), "has type 13"),
    "unknown item type": (gguf_bytes([entry("k", 9, struct.pack("<IQ", 77, 0))]), "has type 77"),
    "nested array": (gguf_bytes([entry("k", 9, struct.pack("<IQIQ", 9, 1, 4, 0))]), "array of arrays"),
    "long string": (gguf_bytes([entry("k", 8, struct.pack("<Q", HUGE))]), "bytes of the value of 'k'"),
    "long array": (gguf_bytes([entry("k", 9, struct.pack("<IQ", 4, HUGE))]), "items of 'k'"),
    "array cut": (gguf_bytes([entry("k", 9, struct.pack("<IQ", 12, 20) + bytes(30))]), "ends within its header"),
    "long item": (gguf_bytes([entry("k", 9, struct.pack("<IQQQ", 8, 2, HUGE, 0))]), "longer than the file"),
    "no dimensions": (gguf_bytes((), [tensor("t", [], 0, 0) + bytes(8)], 32), "has 0 dimensions"),
    "many dimensions": (gguf_bytes((), [tensor("t", [1] * 5, 0, 0)], 32), "has 5 dimensions"),
    "empty dimension": (gguf_bytes((), [tensor("t", [8, 0], 0, 0)], 32), "empty shape"),
    "large dimensions": (gguf_bytes((), [tensor("t", [2**62] * 4, 0, 0)], 32), "and the file has"),
    "row of half a block": (gguf_bytes((), [tensor("t", [48, 2], 8, 0)], 102), "no multiple of the 32 in a Q8_0 block"),
    "row of half a K block": (gguf_bytes((), [tensor("t", [128, 2], 12, 0)], 144), "no multiple of the 256 in a Q4_K block"),
    "data cut": (gguf_bytes((), [ONE_F32], 31), "ends at byte"),
    "offset beyond the end": (gguf_bytes((), [tensor("t", [8], 0, 2**63)], 32), "and the file has"),
    "unaligned offset": (gguf_bytes((), [tensor("t", [8], 0, 16)], 64), "not aligned"),
    "overlap": (gguf_bytes((), [tensor("t", [9], 0, 0), tensor("u", [8], 0, 32)], 64), "'t' and 'u' overlap"),
    "same place": (gguf_bytes((), [ONE_F32, tensor("u", [8], 0, 0)], 64), "overlap"),
    "same name": (gguf_bytes((), [ONE_F32, tensor("t", [8], 0, 32)], 64), "have one name"),
    "alignment 0": (gguf_bytes([entry("general.alignment", 4, bytes(4))]), "not a power of two"),
    "alignment 48": (gguf_bytes([entry("general.alignment", 4, struct.pack("<I", 48))]), "not a power of two"),
    "alignment 2^31": (gguf_bytes([entry("general.alignment", 4, struct.pack("<I", 2**31))]), "not a power of two"),
    "alignment true": (gguf_bytes([entry("general.alignment", 7, b"\1")]), "not a power of two"),
    "alignment text": (gguf_bytes([entry("general.alignment", 8, text("32"))]), "not a power of two"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(path: Path, name: str) -> None:
    content, message = FAULTS[name]
    with pytest.raises(CheckpointError, match=message) as error:
        opened(path, content)
    assert not isinstance(error.value, ModelNotFound | UnsupportedModel)
    assert str(path) in str(error.value)


def test_the_file_of_the_faults_is_valid_without_them(path: Path) -> None:
    """Negative control: the hand-made files are refused for their fault and for nothing else."""
    whole = gguf_bytes([entry("k", 4, bytes(4))], [tensor("t", [9], 0, 0), tensor("u", [8], 0, 64)], 96)
    assert list(opened(path, whole).tensors) == ["t", "u"]
    small = gguf_bytes([entry("general.alignment", 4, struct.pack("<I", 1))], [tensor("t", [8], 0, 3)], 35, alignment=1)
    assert opened(path, small).tensors["t"].nbytes == 32


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        (text("a"), "announces 3 items of 'k'"),
        (text("a" * 12) + bytes(4), "has 3 strings, and the file ends before the last"),
        (text("") + text("a" * 12)[:16], "a string of 'k' is longer than the file"),
    ],
)
def test_strings_that_the_file_cuts_are_refused(path: Path, strings: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(path, gguf_bytes([entry("k", 9, struct.pack("<IQ", 8, 3) + strings)], alignment=1))


@pytest.mark.parametrize("version", [0, 1, 4, 2**24 + 1, 2**31])
def test_other_versions_are_named(path: Path, version: int) -> None:
    with pytest.raises(UnsupportedModel, match=f"version {version}"):
        opened(path, gguf_bytes(version=version))


@pytest.mark.parametrize("version", [2, 3])
def test_big_endian_files_are_named(path: Path, version: int) -> None:
    with pytest.raises(UnsupportedModel, match="big-endian"):
        opened(path, b"GGUF" + struct.pack(">IQQ", version, 0, 0))


@pytest.mark.parametrize(
    ("module", "limit", "value", "message"),
    [
        (container, "MAX_TENSORS", 1, "it has 2 tensors and 1 metadata values"),
        (container, "MAX_VALUES", 0, "it has 2 tensors and 1 metadata values"),
        (container, "MAX_HEADER", 90, "before them|ends within its header"),
        (value_reader, "MAX_ITEMS", 2, "its arrays have more than 2 items"),
    ],
)
def test_sizes_are_limited(
    path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, limit: str, value: int, message: str
) -> None:
    array = entry("k", 9, struct.pack("<IQ", 0, 3) + b"abc")
    content = gguf_bytes([array], [tensor("t", [8], 0, 0), tensor("u", [8], 0, 32)], 64)
    assert len(opened(path, content).tensors) == 2
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(CheckpointError, match=message):
        opened(path, content)


def test_unknown_tensor_types_are_named(path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'t' of .* type 4711"):
        opened(path, gguf_bytes((), [tensor("t", [8], 4711, 0)], 32))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("missing.gguf", "pipe.gguf", "folder.gguf"):
        with pytest.raises(ModelNotFound, match="no such GGUF file"):
            GgufFile.open(tmp_path / name)


def part(number: int, count: int, tensors: Sequence[bytes], total: int | None = None, **more: int) -> bytes:
    values: Mapping[str, int] = {"split.no": number, "split.count": count, **more}
    entries = [entry(key, 2, struct.pack("<H", value)) for key, value in values.items()]
    if total is not None:
        entries.append(entry("split.tensors.count", 5, struct.pack("<i", total)))
    return gguf_bytes(entries, tensors, 32 * len(tensors))


def split(folder: Path, parts: Sequence[bytes]) -> Path:
    paths = [folder / f"m-{index:05}-of-{len(parts):05}.gguf" for index in range(1, len(parts) + 1)]
    for path, content in zip(paths, parts, strict=True):
        path.write_bytes(content)
    return paths[0]


def two_parts(folder: Path) -> Path:
    return split(folder, [part(0, 2, [ONE_F32], 2), part(1, 2, [tensor("u", [8], 0, 0)])])


def test_a_split_file_has_the_tensors_of_all_parts(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    arrays = {f"t{i}": np.full((2, 32), i, np.float32) for i in range(5)}
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(tmp_path / "m-00001-of-00003.gguf")
    assert file.metadata["general.architecture"] == "llama"
    assert {tensor.file.name for tensor in file.tensors.values()} == {f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)}
    for name, stored in file.tensors.items():
        assert stored.file.read_bytes()[stored.start : stored.start + stored.nbytes] == arrays[name].tobytes()


def test_the_parts_may_have_no_count_of_tensors(tmp_path: Path) -> None:
    assert list(GgufFile.open(two_parts(tmp_path)).tensors) == ["t", "u"]
    first = split(tmp_path, [part(0, 2, [ONE_F32]), part(1, 2, [tensor("u", [8], 0, 0)])])
    assert list(GgufFile.open(first).tensors) == ["t", "u"]


def test_all_missing_and_broken_parts_are_listed(tmp_path: Path) -> None:
    first = split(tmp_path, [part(0, 4, [ONE_F32]), *(part(i, 4, []) for i in (1, 2, 3))])
    (tmp_path / "m-00002-of-00004.gguf").unlink()
    (tmp_path / "m-00004-of-00004.gguf").write_bytes(part(3, 4, [ONE_F32])[:-40])
    with pytest.raises(CheckpointError, match=r"2 faults .*m-00002-of-00004.gguf: it is missing; m-00004-of-00004.gguf: .*ends"):
        GgufFile.open(first)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part(0, 2, [ONE_F32]), part(1, 2, [ONE_F32])], "'t' is in two parts"),
        ([part(0, 2, [ONE_F32]), part(0, 2, [])], "says that it is part 0 of 2"),
        ([part(0, 2, [ONE_F32]), part(1, 3, [])], "says that it is part 1 of 3"),
        ([part(0, 2, [ONE_F32]), gguf_bytes()], "says that it is part None of None"),
        ([part(0, 2, [ONE_F32], 3), part(1, 2, [])], "announces 3 tensors and the parts hold 1"),
        ([part(0, 3, [ONE_F32]), part(1, 3, [])], "its name does not fit"),
        ([part(1, 2, [ONE_F32]), part(1, 2, [])], "not the first part"),
    ],
)
def test_inconsistent_parts_are_refused(tmp_path: Path, parts: list[bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GgufFile.open(split(tmp_path, parts))


def test_another_part_names_the_first(tmp_path: Path) -> None:
    first = two_parts(tmp_path)
    with pytest.raises(CheckpointError, match=f"Give the first: {first}"):
        GgufFile.open(tmp_path / "m-00002-of-00002.gguf")
    other = first.rename(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="its name does not fit"):
        GgufFile.open(other)
