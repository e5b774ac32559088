"""What ``doctor MODEL``, ``describe`` and the load line say of a quantised checkpoint, against its files."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.quantized_models import Scheme, quantize, register
from torch import Tensor

from hasten import LLM
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.entrypoints.model_report import report_model
from hasten.models import load as load_module

SMALL = {"max_model_len": 32, "kv_cache_memory": "1MiB", "threads": 1, "speculative_method": "off"}
INT3 = Scheme(bits=3, group_size=8)  # too small a group for a native form
Folders = tuple[Path, Path]


@pytest.fixture
def folders(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Two schemes: int3 in mlp, int4 in attention; the embeddings are plain."""
    register(monkeypatch)
    return quantize(tiny("llama-gqa"), tmp_path, lambda name: INT3 if "mlp" in name else Scheme() if "attn" in name else None)


def stored(folder: Path, part: str = "") -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if part in name}


def bits(quantised: Path, plain: Path, part: str) -> float:
    weights = sum(tensor.numel() for name, tensor in stored(plain, part).items() if not part or tensor.ndim > 1)
    return round(8 * sum(tensor.nbytes for tensor in stored(quantised, part).values()) / weights, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_report_before_loading_is_that_of_the_loaded_model(
    folders: Folders, backend: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised, plain = folders
    llm = LLM(str(quantised), backend=backend, dtype=dtype, **SMALL)
    about = llm.describe()
    monkeypatch.setattr(load_module, "load_weights", lambda *arguments: pytest.fail("weights were read"))
    report = report_model(str(quantised), EngineOptions(backend=backend, dtype=dtype, threads=1))
    weights = stored(plain)
    assert report["parameters"] == about["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert report["file_bytes"] == sum(tensor.nbytes for tensor in stored(quantised).values())
    assert report["bits_per_weight"] == about["bits_per_weight"] == bits(quantised, plain, "")
    assert (report["architecture"], report["layers"], report["dtype"]) == ("llama", 3, dtype)
    assert report["kernels"] == about["kernels"] and report["free_bytes"] > report["weight_bytes"]
    assert report["weight_bytes"] == pytest.approx(about["weight_bytes"], rel=0.15)  # small native matrices are padded
    assert [(use["scheme"], use["matrices"], use["bits_per_weight"]) for use in report["schemes"]] == [
        ("Tiny int3, groups of 8, offsets", 9, bits(quantised, plain, "mlp")),
        ("Tiny int4, groups of 16, offsets", 12, bits(quantised, plain, "attn")),
    ]
    dense = (dtype, dtype == "float32", "float")
    forms = (dense, ("4-bit codes in groups of 16", True, "int16") if backend == "cpu" else dense)
    for use, loaded, form in zip(report["schemes"], about["schemes"], forms, strict=True):
        assert use == {**loaded, "relative_error": None}
        assert (use["kept_as"], use["exact"], use["activations"]) == form
    for loaded, part in zip(about["schemes"], ("mlp", "attn"), strict=True):
        if loaded["exact"]:
            assert loaded["relative_error"] is None
        else:  # of q, k and v together
            errors = [rounding_error(tensor) for tensor in stored(plain, part).values() if tensor.ndim > 1]
            assert min(errors) <= loaded["relative_error"] <= 1.00001 * max(errors)


def rounding_error(weights: Tensor) -> float:
    return math.sqrt(float((weights.bfloat16().double() - weights).square().sum() / weights.double().square().sum()))


def test_the_load_line_names_the_scheme_in_one_clause(
    folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    quantised, plain = folders
    llm = LLM(str(quantised), dtype="bfloat16", show_progress=True, **SMALL)
    clause = (
        f"Tiny int3 and Tiny int4, {bits(quantised, plain, ''):.1f} bits per weight, float and int16 activations, kept as bfloat16"
    )
    assert f"loaded {quantised} ({clause} (relative error 0.00" in capsys.readouterr().err
    assert llm.describe()["weights"].startswith(clause)
    LLM(str(quantised), dtype="float32", show_progress=True, **SMALL)
    assert "float and int16 activations, kept as float32) in " in capsys.readouterr().err
    LLM(str(plain), dtype="bfloat16", show_progress=True, **SMALL)
    assert f"loaded {plain} in " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quantization", "activations"), [(None, "float"), ("int8", "int8"), ("int4-weight-only", "float"), ("int4", "int8")]
)
def test_activations_of_weights_that_are_quantised_while_they_load(
    tiny: Callable[[str], Path], quantization: str | None, activations: str
) -> None:
    about = LLM(str(tiny("llama-gqa")), backend="cpu", quantization=quantization, **SMALL).describe()
    assert (about["activations"], about["schemes"]) == (activations, [])
    assert about["weights"] == (quantization or "float32") and about["bits_per_weight"] == 32


def test_codes_that_are_kept_need_no_word(folders: Folders, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    quantised, _ = quantize(tiny("llama-gqa"), tmp_path / "other", lambda _: Scheme())
    assert LLM(str(quantised), backend="cpu", **SMALL).describe()["weights"].endswith("int16 activations")
    assert LLM(str(quantised), backend="torch", **SMALL).describe()["weights"].endswith("float activations, kept as float32")


def test_a_report_refuses_what_loading_refuses(folders: Folders) -> None:
    with pytest.raises(InvalidOption, match="already quantised"):
        report_model(str(folders[0]), EngineOptions(quantization="int8"))
    (folders[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        report_model(str(folders[0]), EngineOptions())
