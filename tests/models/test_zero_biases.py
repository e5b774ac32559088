"""Biases that a model does not have: dropped where a quantised module stores zeros, as AutoGPTQ does, and refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.quantized_checkpoints import write_fp8, write_gptq
from torch import Tensor

from hasten import LLM, SamplingParams
from hasten.core.errors import CheckpointError
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"
SMALL = {"max_model_len": 32, "kv_cache_memory": "1MiB", "threads": 1}


def add(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    stored = load_file(folder / "model.safetensors")
    assert not tensors.keys() & stored.keys()
    save_file({**stored, **tensors}, folder / "model.safetensors", {"format": "pt"})
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_decoder(folder, ops=TorchOps())
    return str(error.value)


@pytest.mark.parametrize("write", [write_gptq, write_fp8])
def test_zero_biases_of_quantised_modules_are_dropped(
    write: Callable[[Path, Path], object], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    write(tmp_path / "model", tiny("llama-gqa"))
    write(tmp_path / "with-biases", tiny("llama-gqa"))
    stored = load_file(tmp_path / "model" / "model.safetensors")
    modules = {name.rpartition(".")[0] for name in stored if "proj" in name}
    weights = load_file(tiny("llama-gqa") / "model.safetensors")
    zeros = {f"{name}.bias": torch.zeros(len(weights[f"{name}.weight"]), dtype=torch.float16) for name in modules}
    zeros[f"{Q}.bias"] *= -1  # minus zero is zero
    add(tmp_path / "with-biases", zeros)
    greedy, prompt = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), {"prompt_token_ids": [5, 9, 80, 3]}
    llms = [LLM(str(tmp_path / name), **SMALL) for name in ("model", "with-biases")]
    answers = [llm.generate(prompt, greedy, use_tqdm=False)[0].outputs[0].token_ids for llm in llms]
    assert answers[0] == answers[1]


def test_other_biases_of_quantised_modules_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_gptq(tmp_path / "model", tiny("llama-gqa"))
    small, broken, zeros = torch.zeros(64), torch.zeros(96), torch.zeros(64)
    small[5], broken[7] = 6e-8, torch.nan
    add(tmp_path / "model", {f"{Q}.bias": small, f"{UP}.bias": broken, "model.layers.1.self_attn.q_proj.bias": zeros})
    message = refusal(tmp_path / "model")
    assert "has biases that are not zero, and its configuration describes a model without them: " in message
    assert f"{Q}.bias [64]; {UP}.bias [96]. Check that config.json belongs" in message


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        (f"{Q}.bias", torch.zeros(32)),
        (f"{Q}.bias", torch.zeros(64, 1)),
        (f"{Q}.bias", torch.zeros(64, dtype=torch.int32)),
        ("lm_head.bias", torch.zeros(101)),
        ("model.norm.bias", torch.zeros(64)),
        (f"{Q}.biases", torch.zeros(64)),
    ],
)
def test_what_is_no_bias_of_a_quantised_module_is_not_expected(
    name: str, bias: Tensor, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    write_gptq(tmp_path / "model", tiny("llama-gqa"))
    assert f"{name} {list(bias.shape)} is not expected" in refusal(add(tmp_path / "model", {name: bias}))


def test_a_bias_that_the_model_has_is_read(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_gptq(tmp_path / "model", tiny("llama-mqa-bias"))
    decoder = load_decoder(tmp_path / "model", dtype="float32", ops=TorchOps()).decoder
    biases = load_file(tiny("llama-mqa-bias") / "model.safetensors")
    assert torch.equal(decoder.layers[0].attention.qkv.bias[:64], biases[f"{Q}.bias"])
