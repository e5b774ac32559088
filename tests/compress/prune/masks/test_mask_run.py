"""Masks of entire models: against transformers layer by layer, and what a killed or stopped run leaves."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.compress.files import file_bytes, hasten_logits
from tests.tiny_models import SIZES
from tests.training.conftest import stop_after
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hasten.compress.cast import cast_checkpoint
from hasten.compress.new_folder import partial_folder
from hasten.compress.prune.masks.magnitude import Magnitude
from hasten.compress.prune.masks.pattern import Pattern
from hasten.compress.prune.masks.sparsegpt import SparseGpt
from hasten.compress.prune.masks.wanda import Wanda
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.run import run_pruning
from hasten.compress.quantize.calibration import calibration_ids
from hasten.compress.quantize.statistics import InputStatistics
from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer

SMALL: dict[str, Any] = {"samples": 6, "seq_len": 24}
# What engines join chooses the zeros of SparseGPT together.
JOINED = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]
METHODS = {"magnitude": Magnitude(), "wanda": Wanda(), "sparsegpt": SparseGpt()}


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    return {name: (tensor == 0) for name, tensor in load_file(folder / "model.safetensors").items() if tensor.ndim == 2}


@pytest.mark.parametrize("pattern", ["free", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_each_layer_is_pruned_on_the_outputs_of_the_pruned_layers_before_it(model, calibration, tmp_path, method, pattern):
    """transformers runs the reference; its layers get the written weights one after the other."""
    options = PruneOptions(method=method, ratio=0.5, pattern=pattern, **SMALL)
    run_pruning(str(model), tmp_path / "out", options, calibration=None if method == "magnitude" else calibration)
    written = load_file(tmp_path / "out" / "model.safetensors")
    tokenizer = TextTokenizer.load(model, 101)
    ids = calibration_ids(calibration, tokenizer, samples=6, seq_len=24, seed=0, max_positions=256)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for index in range(3):
        layer = reference.model.layers[index]
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
        inputs = {name: InputStatistics.empty(module.in_features, with_hessian=True) for name, module in linears.items()}
        hooks = [
            module.register_forward_pre_hook(lambda _, args, found=inputs[name]: found.add(args[0].flatten(0, 1)))
            for name, module in linears.items()
        ]
        with torch.no_grad():
            reference(ids)
        for hook in hooks:
            hook.remove()
        for names in JOINED:
            weights = torch.cat([linears[name].weight.detach() for name in names])
            pruned = METHODS[method].prune(weights, Pattern(0.5, pattern == "2:4"), inputs[names[0]], names[0])
            found = torch.cat([written[f"model.layers.{index}.{name}.weight"] for name in names])
            # The sums of the statistics differ in their last bits, so a few weights at the threshold may, too.
            assert ((pruned - found).abs() > 1e-4).float().mean() < 0.01, names
            assert (found == 0).float().mean() == 0.5
        with torch.no_grad():
            for name, module in linears.items():
                module.weight.copy_(written[f"model.layers.{index}.{name}.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shapes_dtypes_and_kept_weights_stay(model, calibration, tmp_path, dtype):
    cast_checkpoint(model, tmp_path / "cast", dtype)
    source = load_file(tmp_path / "cast" / "model.safetensors")
    for method in METHODS:
        options = PruneOptions(method=method, ratio=0.25, **SMALL)
        result = run_pruning(
            str(tmp_path / "cast"), tmp_path / method, options, calibration=None if method == "magnitude" else calibration
        )
        assert result is not None and result.num_parameters == result.original_num_parameters
        written = load_file(tmp_path / method / "model.safetensors")
        assert {name: (w.shape, w.dtype) for name, w in written.items()} == {n: (w.shape, w.dtype) for n, w in source.items()}
        assert json.loads((tmp_path / method / "config.json").read_text()) == json.loads(
            (tmp_path / "cast" / "config.json").read_text()
        )
        for name, tensor in written.items():
            if ".layers." not in name or tensor.ndim < 2:
                assert tensor.equal(source[name])
            elif method != "sparsegpt":
                assert tensor[tensor != 0].equal(source[name][tensor != 0])
                assert ((tensor == 0).sum(1) >= round(0.25 * tensor.shape[1])).all()
        card = (tmp_path / method / "README.md").read_text()
        assert "Zeros bring no speed by themselves" in card and "(25.0%)" in card


@pytest.mark.parametrize("name", ["gpt2", "llama-mha-tied", "qwen3-tied-bias"])
def test_all_families_load_in_transformers_with_equal_logits(tiny: Callable[[str], Path], tmp_path, name):
    """GPT-2 stores its matrices transposed: the groups of 2:4 are of inputs there, too."""
    run_pruning(str(tiny(name)), tmp_path / "out", PruneOptions(method="magnitude", ratio=0.5, pattern="2:4"))
    ids = torch.randint(3, 90, (2, 30), generator=torch.Generator().manual_seed(3))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logits = reference(ids).logits
    assert (hasten_logits(tmp_path / "out", ids) - logits).abs().max() < 1e-4
    matrices = {key: found for key, found in zeros(tmp_path / "out").items() if ".layers." in key or ".h." in key}
    pruned = {key: found.T if name == "gpt2" else found for key, found in matrices.items()}
    assert pruned and all(found.reshape(len(found), -1, 4).sum(-1).eq(2).all() for found in pruned.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_anywhere_resumes_to_the_same_bytes(model, calibration, tmp_path, monkeypatch, method):
    monkeypatch.setattr("hasten.compress.quantize.calibration_state.SAVE_EVERY", 0.0)
    options = PruneOptions(method=method, ratio=0.5, **SMALL)
    text = None if method == "magnitude" else calibration
    seen: list[tuple[int, int]] = []
    run_pruning(str(model), tmp_path / "whole", options, calibration=text, progress=lambda *steps: seen.append(steps))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    for stop in random.Random(method).sample(range(len(seen) - 1), 3):
        out = tmp_path / f"stopped-{stop}"
        assert run_pruning(str(model), out, options, calibration=text, should_stop=stop_after(stop)) is None
        assert not out.exists()
        if partial_folder(out).exists():  # a part is finished
            with pytest.raises(InvalidOption, match="Add --resume"):
                run_pruning(str(model), out, options, calibration=text)
        assert run_pruning(str(model), out, options, calibration=text, resume=True) is not None
        assert file_bytes(out) == file_bytes(tmp_path / "whole")
        assert not partial_folder(out).exists()


def test_a_killed_run_resumes_to_the_same_bytes(model, calibration, tmp_path):
    script = """
import os, signal, sys
from hasten.compress.quantize import calibration_state
from hasten.compress.prune.run import run_pruning
from pathlib import Path
from hasten.compress.prune.options import PruneOptions
calibration_state.SAVE_EVERY = 0.0
def progress(done, total):
    if done > 0.6 * total:
        os.kill(os.getpid(), signal.SIGKILL)
options = PruneOptions(method="sparsegpt", ratio=0.5, samples=6, seq_len=24, threads=1)
run_pruning(sys.argv[1], Path(sys.argv[2]), options, calibration=Path(sys.argv[3]), progress=progress)
"""
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", script, str(model), str(out), str(calibration)], stderr=subprocess.PIPE)
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    options = PruneOptions(method="sparsegpt", ratio=0.5, **SMALL, threads=1)
    run_pruning(str(model), out, options, calibration=calibration, resume=True)
    run_pruning(str(model), tmp_path / "whole", options, calibration=calibration)
    assert file_bytes(out) == file_bytes(tmp_path / "whole")


def test_the_pattern_2_4_needs_groups_of_four_inputs(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES | {"intermediate_size": 42})).save_pretrained(tmp_path / "odd")
    folder = tmp_path / "odd"
    with pytest.raises(InvalidOption, match=r"multiple of 4 inputs: model\.layers\.0\.mlp\.down_proj\.weight \(42\)"):
        run_pruning(str(folder), tmp_path / "out", PruneOptions(method="magnitude", ratio=0.5, pattern="2:4"))


def test_a_text_without_effect_is_refused(model, calibration, tmp_path):
    with pytest.raises(InvalidOption, match="no effect with the method magnitude"):
        run_pruning(str(model), tmp_path / "out", PruneOptions(method="magnitude", ratio=0.5), calibration=calibration)
