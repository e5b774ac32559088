"""A whole model is quantised layer by layer: what a layer is calibrated on, what is written, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.exhaustive import EXHAUSTIVE
from tests.models.dense import dense_logits
from tests.small_disk import small_disk
from tests.training.conftest import stop_after
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.compress.cast import cast_checkpoint
from hasten.compress.new_folder import partial_folder
from hasten.compress.quantize import quantize as lifecycle
from hasten.compress.quantize.calibration import calibration_ids
from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.quantize import quantize
from hasten.compress.quantize.rounding.gptq import Gptq
from hasten.compress.quantize.statistics import InputStatistics
from hasten.core.errors import CapacityError, CheckpointError, InvalidOption, UnsupportedModel
from hasten.layers.formats.stored_matrix import dequantize
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.text.tokenizer import TextTokenizer

SMALL = {"samples": 6, "seq_len": 24, "group_size": 32}


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a quantised checkpoint means, by name."""
    found = Checkpoint.open(folder).matrices
    return {name: dequantize(matrix, 0, matrix.shape[0]) for name, matrix in found.items()}


def test_each_layer_is_calibrated_on_the_outputs_of_the_quantised_layers_before_it(model, calibration, tmp_path):
    """transformers runs the text through the layers; hooks give the inputs of every projection."""
    options = QuantizeOptions(method="gptq", **SMALL)
    quantize(str(model), tmp_path / "out", options, calibration=calibration)
    written = matrices(tmp_path / "out")
    tokenizer = TextTokenizer.load(model, 101)
    ids = calibration_ids(calibration, tokenizer, samples=6, seq_len=24, seed=0, max_positions=256)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    spec = Checkpoint.open(tmp_path / "out").matrices["model.layers.0.mlp.up_proj.weight"].spec
    for index in range(3):
        layer = reference.model.layers[index]
        inputs: dict[str, InputStatistics] = {}
        hooks = []
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                inputs[name] = InputStatistics.empty(module.in_features, with_hessian=True)
                hooks.append(module.register_forward_pre_hook(lambda _, args, s=inputs[name]: s.add(args[0].flatten(0, 1))))
        with torch.no_grad():
            reference(ids)
        for hook in hooks:
            hook.remove()
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                rows = Gptq().quantize(module.weight.detach(), Grid(spec, torch.float32), inputs[name], name)
                full_name = f"model.layers.{index}.{name}.weight"
                # The sums of the statistics differ in their last bits, so a few codes at the middle between two may, too.
                different = (rows.dequantize() - written[full_name]).abs() > 1e-6
                assert different.float().mean() < 0.01, full_name
        with torch.no_grad():
            for name, module in layer.named_modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.copy_(written[f"model.layers.{index}.{name}.weight"])


INTEGER_METHODS = ("rtn", "gptq", "hqq", "awq", "awq+gptq", "smoothquant", "smoothquant+gptq", "smoothquant+awq")
INTEGER_SCHEMES: tuple[dict[str, Any], ...] = (
    {"bits": 4},
    {"bits": 8, "group_size": -1},
    {"bits": 4, "activations": "int8"},
    {"bits": 8, "group_size": -1, "activations": "int8"},
    {"bits": 8, "group_size": -1, "activations": "int8-static"},
    {"format": "gptq", "bits": 2},
    {"format": "gptq", "bits": 3},
    {"format": "gptq", "bits": 4},
    {"format": "gptq", "bits": 8, "group_size": -1},
    {"format": "awq"},
    {"format": "awq", "symmetric": True},
)
COMBINATIONS = [
    *(
        (method, {"activations": "none", **scheme})
        for number, method in enumerate(INTEGER_METHODS)
        # Neighbours in the list of a CI run differ in method and scheme.
        for scheme in INTEGER_SCHEMES[number:] + INTEGER_SCHEMES[:number]
    ),
    *(("fp8", {"group_size": None, "activations": activations}) for activations in ("fp8", "fp8-static", "none")),
]
COMBINATIONS = COMBINATIONS if EXHAUSTIVE else COMBINATIONS[::5]


@pytest.mark.parametrize(("method", "options"), COMBINATIONS, ids=lambda value: str(value))
def test_transformers_and_hasten_read_what_is_written(model, calibration, tmp_path, method, options):
    """Where transformers reads a format by a further package, it gets the weights that hasten reads from it."""
    quantize(str(model), tmp_path / "out", QuantizeOptions(method=method, **{**SMALL, **options}), calibration=calibration)
    assert len(matrices(tmp_path / "out")) == 3 * 7
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    source = json.loads((model / "config.json").read_text())
    assert stored.pop("quantization_config")["quant_method"] in ("compressed-tensors", "gptq", "awq")
    assert stored == source
    reference = transformers_model(tmp_path / "out", model)
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.randint(10, 90, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, logits = original(ids).logits, reference(ids).logits
    assert (weight_only_logits(tmp_path / "out", ids) - logits).abs().max() < 1e-3
    error = (logits - expected).norm() / expected.norm()
    # Random weights amplify errors from layer to layer: a wrong layout gives 1.4, unrelated logits.
    assert 0 < error < {2: 1.4, 3: 1.2, 4: 1.0, 8: 0.3}[written_bits(tmp_path / "out")]
    assert hasten_tokens(tmp_path / "out", ids) == greedy_tokens(reference, ids)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", model)]
    assert tokenizers[0]("w10 w20")["input_ids"] == tokenizers[1]("w10 w20")["input_ids"]


def test_transformers_reads_blocks_of_fp8(tmp_path):
    cast_checkpoint(resolve("demo"), tmp_path / "demo", "float32")  # transformers mixes the dtypes of a bfloat16 model
    quantize(str(tmp_path / "demo"), tmp_path / "out", QuantizeOptions(method="fp8", format="fp8"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "fp8"
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.randint(10, 8000, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = reference(ids).logits
    assert (weight_only_logits(tmp_path / "out", ids) - logits).abs().max() < 1e-3


def weight_only_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return hasten's logits with dequantised weights in float32."""
    decoder = load_decoder(folder, dtype="float32", ops=TorchOps()).decoder
    with torch.inference_mode():
        return dense_logits(decoder, ids.tolist()).view(*ids.shape, -1)


def written_bits(folder: Path) -> int:
    (bits,) = {matrix.spec.bits for matrix in Checkpoint.open(folder).matrices.values()}
    return bits


def transformers_model(folder: Path, source: Path) -> torch.nn.Module:
    from transformers import CompressedTensorsConfig

    if "compressed" in (folder / "config.json").read_text():
        config = CompressedTensorsConfig(dequantize=True)
        with warnings.catch_warnings(action="ignore"):  # of attributes that the argument overrides
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    norms = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "norm" in name}
    reference.load_state_dict(matrices(folder) | norms, strict=False)
    return reference


def greedy_tokens(reference: torch.nn.Module, ids: torch.Tensor) -> list[list[int]]:
    reference.generation_config.eos_token_id = None
    out = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return out[:, ids.shape[1] :].tolist()


def hasten_tokens(folder: Path, ids: torch.Tensor) -> list[list[int]]:
    from hasten import LLM, SamplingParams

    llm = LLM(str(folder), backend="torch", dtype="float32", activations="float")
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": row} for row in ids.tolist()], params)
    return [list(output.outputs[0].token_ids) for output in outputs]


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Return the contents of every file but the model card, which names the folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "README.md"}


@pytest.mark.parametrize("method", ["gptq", "rtn", "awq"])
def test_a_run_that_was_stopped_anywhere_resumes_to_the_same_bytes(model, calibration, tmp_path, monkeypatch, method):
    monkeypatch.setattr("hasten.compress.quantize.calibration_state.SAVE_EVERY", 0.0)
    options = QuantizeOptions(method=method, **SMALL)
    calls = 0

    def count() -> bool:
        nonlocal calls
        calls += 1
        return False

    whole = quantize(str(model), tmp_path / "whole", options, calibration=calibration, should_stop=count)
    assert whole is not None
    for number, stop in enumerate(range(0, calls, max(1, calls // 7))):
        out = tmp_path / str(number)
        assert quantize(str(model), out, options, calibration=calibration, should_stop=stop_after(stop)) is None
        assert not out.exists()
        assert quantize(str(model), out, options, calibration=calibration, resume=True) is not None
        assert file_bytes(out) == file_bytes(tmp_path / "whole")
        assert not partial_folder(out).exists()


def test_a_killed_run_resumes_to_the_same_bytes(model, calibration, tmp_path):
    script = """
import os, signal, sys
from hasten.compress.quantize import calibration_state
from hasten.compress.quantize.quantize import quantize
from pathlib import Path
from hasten.compress.quantize.options import QuantizeOptions
calibration_state.SAVE_EVERY = 0.0
def progress(done, total):
    if done > 0.6 * total:
        os.kill(os.getpid(), signal.SIGKILL)
options = QuantizeOptions(method="gptq", samples=6, seq_len=24, group_size=32, threads=1)
quantize(sys.argv[1], Path(sys.argv[2]), options, calibration=Path(sys.argv[3]), progress=progress)
"""
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", script, str(model), str(out), str(calibration)], stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists() and (partial_folder(out) / ".resume" / "state.json").is_file()
    options = QuantizeOptions(method="gptq", **SMALL, threads=1)
    with pytest.raises(InvalidOption, match="Add --resume"):
        quantize(str(model), out, options, calibration=calibration)
    with pytest.raises(InvalidOption, match="seed was 0 and is 1"):
        quantize(str(model), out, QuantizeOptions(method="gptq", **SMALL, threads=1, seed=1), calibration=calibration, resume=True)
    quantize(str(model), out, options, calibration=calibration, resume=True)
    quantize(str(model), tmp_path / "whole", options, calibration=calibration)
    assert file_bytes(out) == file_bytes(tmp_path / "whole")


@pytest.mark.parametrize("place", ["the first part", "the merged file"])
def test_a_full_disk_is_one_error_and_the_run_resumes(model, calibration, tmp_path, place):
    options = QuantizeOptions(method="gptq", **SMALL)
    quantize(str(model), tmp_path / "whole", options, calibration=calibration)
    size = 4_000 if place == "the first part" else (tmp_path / "whole" / "model.safetensors").stat().st_size - 1
    with small_disk(size), pytest.raises(CapacityError, match="cannot be written"):
        quantize(str(model), tmp_path / "out", options, calibration=calibration)
    assert not (tmp_path / "out").exists()
    quantize(str(model), tmp_path / "out", options, calibration=calibration, resume=True)
    assert file_bytes(tmp_path / "out") == file_bytes(tmp_path / "whole")


@pytest.mark.parametrize(("method", "ignore"), [("gptq", ()), ("rtn", ()), ("awq", ("re:.*mlp[.].*",))])
def test_progress_grows_to_the_end_also_in_a_resumed_run(model, calibration, tmp_path, method, ignore):
    options = QuantizeOptions(method=method, **SMALL, ignore=ignore)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    quantize(str(model), tmp_path / "whole", options, calibration=calibration, progress=progress)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    quantize(
        str(model),
        tmp_path / "out",
        options,
        calibration=calibration,
        should_stop=lambda: len(list(tmp_path.rglob("layer-00001*"))) > 0,
    )
    seen.clear()
    quantize(str(model), tmp_path / "out", options, calibration=calibration, progress=progress, resume=True)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]


def test_one_layer_is_in_memory_at_a_time(model, calibration, tmp_path, monkeypatch):
    quantize_layer, layers = lifecycle.quantize_layer, []

    def remember(*arguments: Any) -> Any:
        assert all(layer() is None for layer in layers)
        quantized = quantize_layer(*arguments)
        layers.append(weakref.ref(quantized.layer))
        return quantized

    monkeypatch.setattr(lifecycle, "quantize_layer", remember)
    quantize(str(model), tmp_path / "out", QuantizeOptions(method="gptq", **SMALL), calibration=calibration)
    assert len(layers) == 3


def changed(model: Path, folder: Path, dtype: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Return a copy of the model in ``dtype`` with changed tensors."""
    cast_checkpoint(model, folder, dtype)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["smoothquant", "gptq", "rtn"])
def test_inputs_that_overflow_are_an_error(model, calibration, tmp_path, method):
    source = changed(model, tmp_path / "source", "float32", lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(1e38))
    options = QuantizeOptions(method=method, samples=4, seq_len=24, bits=8, group_size=-1, activations="int8-static")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj.* not finite in calibration"):
        quantize(str(source), tmp_path / "out", options, calibration=calibration)


def test_the_scale_of_tiny_static_activations_is_above_0(model, calibration, tmp_path):
    source = changed(model, tmp_path / "source", "float16", lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(1e-7))
    options = QuantizeOptions(method="rtn", samples=4, seq_len=24, bits=8, group_size=-1, activations="int8-static")
    quantize(str(source), tmp_path / "out", options, calibration=calibration)
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.down_proj.input_scale"] > 0


def test_a_norm_that_a_transform_makes_too_large_is_an_error(model, calibration, tmp_path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.input_layernorm.weight"][3] = 60_000
        for name in "qkv":
            tensors[f"model.layers.1.self_attn.{name}_proj.weight"][:, 3] = 60_000
        tensors["model.layers.0.mlp.down_proj.weight"][3] = 0
        tensors["model.layers.0.self_attn.o_proj.weight"][3] = 0
        tensors["model.embed_tokens.weight"][:, 3] = 1e-5

    source = changed(model, tmp_path / "source", "float16", change)
    with pytest.raises(CheckpointError, match=r"layers\.1\.input_layernorm\.weight too large for float16"):
        quantize(
            str(source), tmp_path / "out", QuantizeOptions(method="smoothquant", samples=4, seq_len=24), calibration=calibration
        )


def test_a_disk_that_is_too_small_is_refused_at_the_start(model, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("Usage", (), {"free": 1000})())
    with pytest.raises(CapacityError, match="too small"):
        quantize(str(model), tmp_path / "out", QuantizeOptions(method="rtn", group_size=32))
    assert list(tmp_path.iterdir()) == []


def test_ignored_modules_stay_as_they_are(model, tmp_path):
    ignore = ("re:.*mlp[.]down_proj", "model.layers.1.self_attn.o_proj")
    quantize(str(model), tmp_path / "out", QuantizeOptions(method="rtn", group_size=32, ignore=ignore))
    stored, source = load_file(tmp_path / "out" / "model.safetensors"), load_file(model / "model.safetensors")
    kept = [f"model.layers.{index}.mlp.down_proj.weight" for index in range(3)] + ["model.layers.1.self_attn.o_proj.weight"]
    assert all(torch.equal(stored[name], source[name]) for name in kept)
    assert set(matrices(tmp_path / "out")).isdisjoint(kept) and len(matrices(tmp_path / "out")) == 21 - 4
    reference = transformers_model(tmp_path / "out", model)
    assert torch.equal(reference.model.layers[0].mlp.down_proj.weight, source[kept[0]])


def refused(
    model: Path | str, tmp_path: Path, error: type[Exception], match: str, calibration: Path | None = None, **options: object
) -> str:
    with pytest.raises(error, match=match) as caught:
        quantize(str(model), tmp_path / "out", QuantizeOptions(**options), calibration=calibration)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")] == []
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def test_a_group_size_that_does_not_divide_names_every_layer(model, tmp_path):
    message = refused(model, tmp_path, InvalidOption, "64", method="rtn", group_size=48)
    for index in range(3):
        assert f"layers.{index}." in message
    assert "32" in message and "ignore" in message


def test_bad_options_are_refused_before_anything_is_written(model, calibration, tmp_path):
    def option_error(match: str, **options: object) -> None:
        refused(model, tmp_path, InvalidOption, match, calibration, **options)

    option_error("Did you mean 'gptq'", method="gtpq")
    option_error("do not go together", method="gptq+awq")
    option_error("no matrix", method="rtn", group_size=32, ignore=("model.layers.9.mlp.up_proj",))
    option_error("no regular expression", method="rtn", group_size=32, ignore=("re:(",))
    option_error("all of them or none", method="rtn", group_size=32, ignore=("model.layers.0.self_attn.q_proj",))
    option_error("nothing is left", method="rtn", group_size=32, ignore=("re:.*",))
    option_error("activations", method="rtn", activations="fp8")
    option_error("activations", method="fp8", activations="int8")
    option_error("FP8 has 8 bits", method="fp8", bits=4)
    option_error("symmetric|zero point|asymmetric", method="rtn", group_size=32, symmetric=False)
    option_error("Choose another format or other bits", method="rtn", bits=8, format="awq")
    option_error("4 or 8 bits, not 3. Choose another format or other bits", method="rtn", bits=3, group_size=32)
    with pytest.raises(InvalidOption, match="no effect"):
        quantize(str(model), tmp_path / "out", QuantizeOptions(method="rtn"), method_options={"damping": 0.1})


def test_bad_sources_are_refused(model, calibration, tiny, tmp_path):
    quantize(str(model), tmp_path / "quantised", QuantizeOptions(method="rtn", group_size=32))
    message = refused(tmp_path / "quantised", tmp_path, UnsupportedModel, "quantised again", method="rtn", group_size=32)
    assert "int4" in message
    refused(tiny("gpt2"), tmp_path, UnsupportedModel, "transposed", method="rtn", group_size=32)
    refused(model, tmp_path, InvalidOption, "cannot be read", tmp_path / "nothing.txt", method="gptq", **SMALL)
    (tmp_path / "empty.txt").write_text(" \n")
    refused(model, tmp_path, InvalidOption, "is empty", tmp_path / "empty.txt", method="gptq", **SMALL)
    refused(tiny("llama-gqa"), tmp_path, InvalidOption, "no tokenizer", calibration, method="gptq", **SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InvalidOption, match="not an empty folder"):
        quantize(str(model), tmp_path / "full", QuantizeOptions(method="rtn", group_size=32))


def test_a_matrix_that_cannot_be_calibrated_is_an_error(model, calibration, tmp_path, monkeypatch):
    def fail(self: object, *arguments: object) -> None:
        raise CheckpointError("the Hessian of x has no Cholesky factor")

    monkeypatch.setattr(Gptq, "quantize", fail)
    with pytest.raises(CheckpointError, match="Cholesky"):
        quantize(str(model), tmp_path / "out", QuantizeOptions(method="gptq", **SMALL), calibration=calibration)
    assert not (tmp_path / "out").exists()
