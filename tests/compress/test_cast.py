"""A cast checkpoint is the one that PyTorch casts, and appears complete or not at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.quantized_checkpoints import write_gptq
from torch import Tensor
from transformers import AutoModelForCausalLM

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.compress import cast
from hasten.compress.cast import cast_checkpoint
from hasten.core.errors import CapacityError, CheckpointError, InvalidOption
from hasten.models.load import load_decoder
from hasten.ops.native_dtype import native_dtype
from hasten.ops.torch.backend import TorchOps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def plain_source(folder: Path, **tensors: Tensor) -> Path:
    """Write a folder of these tensors. The command knows no architecture, so any will do."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-sharded", "qwen2-tied", "qwen3-gqa", "mistral-window", "gpt2"])
def test_the_result_is_the_model_that_pytorch_casts(name: str, dtype: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = tiny(name), tmp_path / "out"
    report = cast_checkpoint(source, out, dtype)
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(DTYPES[dtype])
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.dtype == DTYPES[dtype]
    wanted = expected.state_dict()
    assert wanted.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in loaded.state_dict().items())
    layout = {file.name: sorted(load_file(file)) for file in source.glob("*.safetensors")}
    assert {file.name: sorted(load_file(file)) for file in out.glob("*.safetensors")} == layout
    assert load_decoder(out, ops=TorchOps()).dtype == DTYPES[dtype]  # hasten's own checks
    assert report.bytes_after == sum(tensor.nbytes for tensor in tensors_of(out).values())
    assert report.bytes_before == sum(tensor.nbytes for tensor in tensors_of(source).values())
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype


def test_an_index_names_every_tensor_and_size(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cast_checkpoint(tiny("llama-sharded"), tmp_path / "out", "bfloat16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    stored = {name: file.name for file in (tmp_path / "out").glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == stored and len(set(stored.values())) > 1
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values())


def test_the_demo_keeps_its_tokenizer_and_templates(tmp_path: Path) -> None:
    source = resolve("demo")
    cast_checkpoint(source, tmp_path / "out", "float32")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    copied = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert names == copied | {"config.json", "model.safetensors"}
    assert all((tmp_path / "out" / name).read_bytes() == (source / name).read_bytes() for name in copied)


def test_errors_and_zeros_are_measured_against_numpy(tmp_path: Path) -> None:
    """The largest relative error of every stored dtype, chunks and empty tensors included."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3_001, 1_500, generator=generator) * torch.logspace(-12, 2, 1_500)  # more than one chunk
    wide[0, :9] = 0.0
    half = torch.randn(70, 3, generator=generator).to(torch.bfloat16) * 1e-4
    double = torch.randn(64, generator=generator, dtype=torch.float64)
    whole = torch.arange(7)
    empty = torch.zeros(0, 4)
    scalar = torch.tensor(0.1)
    source = plain_source(tmp_path / "in", wide=wide, half=half, double=double, whole=whole, empty=empty, scalar=scalar)
    report = cast_checkpoint(source, tmp_path / "out", "float16")

    def largest(values: Tensor) -> float:
        exact = values.double().numpy().ravel()
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.nanmax(np.abs(exact.astype(np.float16).astype(np.float64) - exact) / np.abs(exact)))

    assert report.relative_errors["float32"] == pytest.approx(max(largest(wide), largest(scalar)), rel=1e-5)
    assert report.relative_errors["bfloat16"] == pytest.approx(largest(half), rel=1e-5)
    assert report.relative_errors["float64"] == pytest.approx(largest(double), rel=1e-9)
    zeroed = [(tensor != 0) & (tensor.half() == 0) for tensor in (wide, half)]
    assert report.num_zeroed == sum(int(mask.sum()) for mask in zeroed) > 0
    assert report.num_tensors == 5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "llama", "dtype": "float16"}  # one name of the dtype
    result = tensors_of(tmp_path / "out")
    assert torch.equal(result["wide"], wide.half()) and torch.equal(result["double"], double.half())
    assert torch.equal(result["whole"], whole) and result["empty"].shape == (0, 4) and result["scalar"].shape == ()
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "in", a=torch.ones(3_000, 2_000), b=torch.ones(5, dtype=torch.int64))
    for dtype, passes in (("bfloat16", 1), ("float16", 2)):
        calls: list[tuple[int, int]] = []
        cast_checkpoint(source, tmp_path / dtype, dtype, progress=lambda done, total, calls=calls: calls.append((done, total)))
        total = passes * 24_000_000 + 40
        assert [done for done, _ in calls] == sorted({done for done, _ in calls})
        assert calls[-1] == (total, total) and len(calls) == 6 * passes + 1


def test_auto_is_the_dtype_of_this_machine(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "in", a=torch.ones(2))
    assert cast_checkpoint(source, tmp_path / "out", "auto").dtype == native_dtype()


def test_float16_refuses_larger_weights_before_it_writes(tmp_path: Path) -> None:
    tensors = {"fits": torch.tensor([65_504.0]), "wide": torch.tensor([1.0, -65_505.0]), "huge": torch.tensor([3e38])}
    source = plain_source(tmp_path / "in", **tensors)
    with pytest.raises(InvalidOption, match=r"2 faults\): .*huge \(up to 3e\+38\).* Use bfloat16") as caught:
        cast_checkpoint(source, tmp_path / "out", "float16")
    assert "wide (up to 65505)" in str(caught.value) and "fits" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [source]
    assert cast_checkpoint(source, tmp_path / "out", "bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_refused(value: float, dtype: str, tmp_path: Path) -> None:
    source = plain_source(tmp_path / "in", good=torch.ones(2), bad=torch.tensor([1.0, value]))
    with pytest.raises(CheckpointError, match=r"the tensor bad of .* NaN or infinity"):
        cast_checkpoint(source, tmp_path / "out", dtype)
    assert sorted(tmp_path.iterdir()) == [source]


def test_the_output_is_checked_before_the_weights_are_read(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "in", huge=torch.tensor([3e38]))
    with pytest.raises(InvalidOption, match="not an empty folder"):
        cast_checkpoint(source, source, "float16")


def test_other_refusals(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source = plain_source(tmp_path / "in", a=torch.ones(2))
    write_gptq(tmp_path / "gptq", tiny("llama-gqa"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    for folder, out, dtype, message in (
        (source, "out", "float61", "unknown dtype: got 'float61'.*Did you mean 'float16'"),
        (tmp_path / "gptq", "out", "float16", "already quantised: got GPTQ int4"),
        (tmp_path / "model.gguf", "out", "float16", "a GGUF file cannot be cast"),
        (source, "full", "float16", "not an empty folder"),
        (source, "file", "float16", "not an empty folder"),
        (source, "in", "float16", "not an empty folder"),
        (source, "file/out", "float16", "cannot be written"),
        (source, "x" * 300, "float16", "cannot be written"),
        (source, "zero\0byte", "float16", "cannot be written"),
    ):
        with pytest.raises(InvalidOption, match=message):
            cast_checkpoint(folder, tmp_path / out, dtype)
    assert (tmp_path / "full" / "mine").exists() and not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "in", a=torch.ones(500_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))  # bytes of a file
    try:
        with pytest.raises(CapacityError, match=r"out cannot be written: got File too large\. Free space"):
            cast_checkpoint(source, tmp_path / "out", "bfloat16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(tmp_path.iterdir()) == [source]


def test_a_disk_that_is_too_small_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = plain_source(tmp_path / "in", a=torch.ones(500_000))
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CapacityError, match="too small for the output: got "):
        cast_checkpoint(source, tmp_path / "new" / "out", "bfloat16")
    assert sorted(tmp_path.iterdir()) == [source]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "in", a=torch.ones(50), b=torch.ones(50))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cast_checkpoint(source, tmp_path / "out", "bfloat16", progress=interrupt)
    assert sorted(tmp_path.iterdir()) == [source]


PROGRAM = """
import os, signal, sys
from pathlib import Path
from hasten.compress.cast import cast_checkpoint
kill = lambda done, total: done > total // 2 and os.kill(os.getpid(), signal.SIGKILL)
cast_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), "bfloat16", progress=kill)
"""


def test_a_killed_run_leaves_no_output_and_the_next_one_replaces_it(tmp_path: Path) -> None:
    source, out = plain_source(tmp_path / "in", **{f"t{i}": torch.full((90,), float(i)) for i in range(6)}), tmp_path / "out"
    path = os.pathsep.join(sys.path)
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(out)], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / "out.partial" / "model.safetensors").exists()
    (tmp_path / "out.partial" / "stray").touch()
    cast_checkpoint(source, out, "bfloat16")
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_that_shrinks_during_the_cast_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = plain_source(tmp_path / "in", a=torch.ones(4, 4))
    opened = Checkpoint.open

    def open_and_replace(folder: Path) -> Checkpoint:
        checkpoint = opened(folder)
        save_file({"a": torch.ones(2, 2)}, folder / "model.safetensors")
        return checkpoint

    monkeypatch.setattr(cast.Checkpoint, "open", open_and_replace)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        cast_checkpoint(source, tmp_path / "out", "bfloat16")
    assert sorted(tmp_path.iterdir()) == [source]
