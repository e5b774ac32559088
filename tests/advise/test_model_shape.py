"""Shapes without weights equal those with them, cost little, and refuse what they cannot read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from tests.tiny_models import TINY

from hasten.advise.count import count, windows
from hasten.advise.model_shape import Precision, read_shape
from hasten.advise.work import decode
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption, ModelNotFound, UnsupportedModel
from hasten.models.load import plan_decoder
from hasten.ops.torch.backend import TorchOps

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("is_here", [True, False])
def test_a_configuration_alone_gives_the_shape_of_its_weights(tiny, tmp_path, name, is_here):
    folder = tiny(name)
    shutil.copy(folder / "config.json", tmp_path)
    precision = Precision(dtype="float32")
    with_weights = read_shape(str(folder), precision, is_here=is_here)
    for alone in (tmp_path, tmp_path / "config.json"):
        shape = read_shape(str(alone), precision, is_here=is_here)
        assert (shape.spec, shape.storage) == (with_weights.spec, with_weights.storage)
    plan = plan_decoder(Checkpoint.open(folder), dtype="float32", ops=TorchOps())
    assert with_weights.storage.weight_bytes == plan.weight_bytes  # float32 takes as much in every form


def test_precisions_change_what_is_kept():
    shapes = {
        name: read_shape("demo", Precision(quantization=name), is_here=False)
        for name in (None, "int8", "int4", "fp8", "int4-weight-only")
    }
    bits = {name: shape.storage.layers[0].up for name, shape in shapes.items()}
    assert bits == {None: 16.0, "int8": 8.0, "int4": 4.5, "fp8": 8.25, "int4-weight-only": 4.5}
    assert {name: shape.arithmetic for name, shape in shapes.items() if name} == {name: name for name in bits if name}
    int8_kv = read_shape("demo", Precision(kv_cache_dtype="int8"), is_here=False)
    assert shapes[None].storage.kv_bytes == {(2, 64): 2 * 2 * 64 * 2}
    assert int8_kv.storage.kv_bytes == {(2, 64): 2 * 2 * (64 + 4)}


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        ({"dtype": "bf16"}, "Did you mean 'bfloat16'"),
        ({"quantization": "int3"}, "int"),
        ({"kv_cache_dtype": "int4"}, "Did you mean 'int8'"),
    ],
)
def test_unknown_precisions_are_refused(precision, text):
    with pytest.raises(InvalidOption, match=text):
        read_shape("demo", Precision(**precision), is_here=False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": ["llama"]}, "model type: got"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": -1}, "num_attention_heads"),
        ({"torch_dtype": "int3"}, "allowed: float32"),
        ({"torch_dtype": {}}, None),
        ({"quantization_config": {"quant_method": "gptq"}}, "only the weights tell"),
    ],
)
def test_a_configuration_that_is_not_known_is_one_sentence(tmp_path, changes, text):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_70B | changes))
    if text is None:  # an empty value names none
        assert read_shape(str(file), Precision(), is_here=False).dtype == torch.bfloat16
        return
    with pytest.raises(UnsupportedModel, match=text) as error:
        read_shape(str(file), Precision(), is_here=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["demoo", "no/such-model", "./x.gguf", "a\0b", "x" * 500, "../..", "config.json"])
def test_a_model_that_is_not_there_is_not_downloaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound):
        read_shape(name, Precision(), is_here=False)


def test_the_count_of_70b_is_cheap(tmp_path):
    """Beyond the import of torch: under 2 s of processor time and 200 MB."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    program = f"""
import resource, time, torch
def used():
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
from hasten.advise.explanation import explain
from hasten.advise.known_machines import known_machine
from hasten.advise.model_shape import Precision, read_shape
from hasten.advise.work import Lengths
shape = read_shape({str(tmp_path)!r}, Precision(), is_here=False)
explained = explain(shape, Lengths(batch=8, prompt=4096, output=512), known_machine("h200"))
after = used()
print(after[0] - before[0], (after[1] - before[1]) * 1024, explained.memory.weights)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, memory, weights = map(float, ran.stdout.split())
    assert weights == 2 * 70_553_706_496  # the parameters of Llama 3.1 70B
    assert seconds < 2
    assert memory < 200e6


def test_a_step_reads_all_but_the_embedding_of_70b(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    shape = read_shape(str(tmp_path), Precision(), is_here=False)
    counted = count(shape.spec, decode(1, 0, windows(shape.spec)), shape.storage)
    assert counted.total.weight_bytes == shape.storage.weight_bytes - 2 * (128256 - 1) * 8192
