"""Quantised checkpoints of the benchmarks: their values by a formula, and as hasten reads them."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.checkpoints.reader import Checkpoint
from hasten.layers.formats.stored_matrix import dequantize

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROJECTION = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def quantised():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("engines.quantised")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def checkpoint(tmp_path):
    """A tied checkpoint with one projection, in parts as files have them: 256 inputs and 192 outputs, vocabulary of 320."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tensors = {
        f"{PROJECTION}.weight": random(192, 256),
        "model.embed_tokens.weight": random(320, 256),
        "model.norm.weight": random(256),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "tie_word_embeddings": True}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def gptq_weights(tensors, module):
    """Return the weights of a GPTQ v1 module, one at a time as the format says, and their scales."""
    words, scales = tensors[f"{module}.qweight"].numpy().view(np.uint32), tensors[f"{module}.scales"].float().numpy()
    zeros = tensors[f"{module}.qzeros"].numpy().view(np.uint32)
    inputs, outputs = words.shape[0] * 8, words.shape[1]
    weights, by_input = np.empty((outputs, inputs), np.float32), np.empty((outputs, inputs), np.float32)
    for i in range(inputs):
        group = int(tensors[f"{module}.g_idx"][i])
        assert group == i // 128
        for o in range(outputs):
            code = int(words[i // 8, o]) >> 4 * (i % 8) & 15
            zero = (int(zeros[group, o // 8]) >> 4 * (o % 8) & 15) + 1
            weights[o, i] = (code - zero) * scales[group, o]
            by_input[o, i] = scales[group, o]
    return torch.from_numpy(weights), torch.from_numpy(by_input)


@pytest.mark.parametrize("lm_head", [False, True])
def test_gptq_weights_are_the_nearest_codes(quantised, checkpoint, tmp_path, lm_head, monkeypatch):
    monkeypatch.setattr(quantised, "CHUNK_ROWS", 128)  # the projection has a chunk and a half
    folder = tmp_path / "gptq"
    quantised.write_gptq(checkpoint, folder, lm_head=lm_head)
    original, tensors = (load_file(path / "model.safetensors") for path in (checkpoint, folder))
    matrices = Checkpoint.open(folder).matrices
    sources = {PROJECTION: f"{PROJECTION}.weight"} | ({"lm_head": "model.embed_tokens.weight"} if lm_head else {})
    assert matrices.keys() == {f"{module}.weight" for module in sources}
    for module, source in sources.items():
        weights, scales = gptq_weights(tensors, module)
        # Half a step, and what rounding the scale to float16 adds at the ends of the range.
        assert ((weights - original[source].float()).abs() <= scales * (0.5 + 8 * 2**-11)).all()
        largest = original[source].float().unflatten(1, (-1, 128)).abs().amax(2)
        assert torch.equal(scales[:, ::128], (largest / 7.5).half().float())
        matrix = matrices[f"{module}.weight"]
        assert matrix.spec.describe() == "GPTQ int4, groups of 128"
        assert torch.equal(dequantize(matrix, 0, len(weights)), weights)
    assert all(torch.equal(tensors[name], original[name]) for name in ("model.embed_tokens.weight", "model.norm.weight"))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is not lm_head
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("lm_head", [False, True])
def test_fp8_weights_are_the_nearest_numbers(quantised, checkpoint, tmp_path, lm_head, monkeypatch):
    monkeypatch.setattr(quantised, "CHUNK_ROWS", 128)
    folder = tmp_path / "fp8"
    quantised.write_fp8(checkpoint, folder, lm_head=lm_head)
    original, tensors = (load_file(path / "model.safetensors") for path in (checkpoint, folder))
    matrices = Checkpoint.open(folder).matrices
    sources = {PROJECTION: f"{PROJECTION}.weight"} | ({"lm_head": "model.embed_tokens.weight"} if lm_head else {})
    assert matrices.keys() == {f"{module}.weight" for module in sources}
    for module, source in sources.items():
        weight = original[source].float()
        outputs, inputs = weight.shape
        expected = torch.empty_like(weight)
        for o in range(0, outputs, 128):
            for i in range(0, inputs, 128):
                block = weight[o : o + 128, i : i + 128]
                scale = block.abs().max() / 448  # the largest e4m3 number
                expected[o : o + 128, i : i + 128] = (block / scale).to(torch.float8_e4m3fn).float() * scale
        matrix = matrices[f"{module}.weight"]
        assert matrix.spec.describe().startswith("FP8, blocks of 128 x 128")
        assert torch.equal(dequantize(matrix, 0, outputs), expected)
        # e4m3 has three bits after the first, and a fixed step of 2**-9 below 2**-6.
        assert ((expected - weight).abs() <= weight.abs() / 16 + weight.abs().max() / 448 * 2**-10).all()
    assert torch.equal(tensors["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


def test_groups_of_zeros_stay_zero(quantised):
    weight = torch.zeros(128, 256, dtype=torch.bfloat16)
    weight[0, 0] = 1.0
    gptq = {f"x.{name}": tensor for name, tensor in quantised.gptq_tensors(weight).items()}
    fp8 = quantised.fp8_tensors(weight)
    assert gptq_weights(gptq, "x")[0].count_nonzero() == 1 and gptq["x.scales"].all()
    assert fp8["weight"].float().count_nonzero() == 1 and fp8["weight_scale_inv"].isfinite().all()
