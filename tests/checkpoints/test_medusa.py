"""Medusa heads keep every bit on the way to disk and back, and what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hasten.checkpoints.formats.medusa import read_medusa, write_medusa
from hasten.core.errors import CheckpointError
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.layers.medusa import MedusaHeads, MedusaSpec
from hasten.ops.torch.backend import TorchOps

SIZE, WORDS, FEW = 24, 53, 20


def build(dtype: torch.dtype = torch.float32) -> LayerContext:
    ops = TorchOps()
    return LayerContext(ops, DenseFormatFactory(ops, dtype), dtype)


def heads(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> MedusaHeads:
    values = {"num_heads": 3, "num_layers": 2, "hidden_size": SIZE, "vocab_size": WORDS, "truncated_vocab_size": WORDS}
    found = MedusaHeads(MedusaSpec(**{**values, "bias": True, "lm_head": "own", **changes}), build(dtype))
    generator = torch.Generator().manual_seed(seed)
    for parameter in found.parameters():
        parameter.normal_(generator=generator)
    if found.token_map is not None:
        found.token_map.copy_(torch.randperm(WORDS, generator=generator)[: len(found.token_map)])
    return found


def read(folder: Path, hidden_size: int = SIZE, vocab_size: int = WORDS, dtype: torch.dtype = torch.float32):
    return read_medusa(folder, hidden_size=hidden_size, vocab_size=vocab_size, layer_context=build(dtype))


def model_projection() -> Linear:
    made = build()
    projection = Linear(made.formats.lm_head(SIZE, WORDS), bias=False, layer_context=made)
    nn.init.normal_(projection.format.weight, generator=torch.Generator().manual_seed(7))
    return projection


KINDS = {
    "own": {},
    "shared": {"lm_head": "shared"},
    "model": {"lm_head": "model"},
    "one layer without bias": {"num_layers": 1, "bias": False},
    "fewer tokens": {"truncated_vocab_size": FEW},
    "fewer of the model's tokens": {"truncated_vocab_size": FEW, "lm_head": "model"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_keeps_every_bit(tmp_path, kind, dtype):
    ours = heads(dtype=dtype, **KINDS[kind])
    accuracies = [[0.5, 0.25], [0.3, 0.1], [0.125, 0.0]]
    write_medusa(tmp_path, ours, dtype=dtype, accuracies=accuracies, base_model="demo")
    found = read(tmp_path, dtype=dtype)
    assert found.heads.spec == ours.spec
    assert found.accuracies == tuple(map(tuple, accuracies))
    theirs = dict(found.heads.named_parameters())
    assert theirs.keys() == dict(ours.named_parameters()).keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.named_parameters())
    assert (ours.token_map is None) == (found.heads.token_map is None)
    assert ours.token_map is None or torch.equal(ours.token_map, found.heads.token_map)


def test_the_names_are_those_of_vllm(tmp_path):
    write_medusa(tmp_path, heads(num_layers=1), dtype=torch.float32)
    assert set(load_file(tmp_path / "model.safetensors")) == {
        name
        for head in range(3)
        for name in (f"blocks.{head}.layers.0.weight", f"blocks.{head}.layers.0.bias", f"lm_heads.{head}.weight")
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("medusa", ["MedusaModel"])
    assert (config["num_heads"], config["num_hidden_layers"], config["hidden_size"]) == (3, 1, SIZE)
    assert (config["vocab_size"], config["truncated_vocab_size"]) == (WORDS, WORDS)
    assert (config["medusa_fc_bias"], config["original_lm_head"]) == (True, False)
    # vLLM takes any other key with "num" and "heads" or "layers" in it for one of its own.
    assert [name for name in config if "num" in name] == ["num_heads", "num_hidden_layers"]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_formula(kind):
    """x + silu(W x + b), layer by layer, then the projection that the kind asks for."""
    found, projection = heads(**KINDS[kind]), model_projection()
    spec, weights = found.spec, dict(found.named_parameters())
    x = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(2))
    given = projection
    if spec.lm_head == "model" and found.token_map is not None:
        given = projection.slice_rows(found.token_map, build())
    logits = found(x, given)
    assert logits.shape == (3, 5, spec.truncated_vocab_size)
    for head in range(3):
        state = x
        for layer in range(spec.num_layers):
            name = f"blocks.{head}.layers.{layer}"
            pre = state @ weights[f"{name}.format.weight"].T + (weights[f"{name}.bias"] if spec.bias else 0)
            state = state + pre / (1 + (-pre).exp())
        matrix = {
            "own": lambda head=head: weights[f"lm_heads.{head}.format.weight"],
            "shared": lambda: weights["lm_heads.0.format.weight"],
            "model": lambda: projection.format.weight[:] if found.token_map is None else projection.format.weight[found.token_map],
        }[spec.lm_head]()
        torch.testing.assert_close(logits[head], state @ matrix.T, atol=1e-4, rtol=1e-4)
    places = torch.tensor([0, spec.truncated_vocab_size - 1])
    assert found.token_ids(places).tolist() == (places if found.token_map is None else found.token_map[places]).tolist()


@pytest.mark.parametrize("prefix", ["", "medusa_head.", "medusa_heads."])
@pytest.mark.parametrize("config", [{}, {"medusa_num_heads": 2, "medusa_num_layers": 2}], ids=["bare", "wrong number"])
def test_the_original_layout_is_read(tmp_path, prefix, config):
    """Its configurations name another number of heads than their files hold; the file is right."""
    ours = heads()
    tensors = {}
    for name, parameter in ours.named_parameters():
        words = name.replace(".format.", ".").split(".")
        theirs = f"{words[1]}.{words[3]}.linear.{words[4]}" if words[0] == "blocks" else f"{words[1]}.2.weight"
        tensors[prefix + theirs] = parameter.clone()
    save_file(tensors, tmp_path / "medusa_lm_head.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model", **config}))
    found = read(tmp_path).heads
    assert (found.spec.num_heads, found.spec.num_layers, found.spec.bias, found.spec.lm_head) == (3, 2, True, "own")
    theirs = dict(found.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.named_parameters())


def test_what_others_write_in_vllms_layout_is_read(tmp_path):
    """A configuration that does not mention biases, the one projection under the name of the first head, and the whole projection
    where the heads use a part.
    """
    ours = heads(lm_head="shared", truncated_vocab_size=FEW)
    write_medusa(tmp_path, ours, dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    whole = torch.randn(WORDS, SIZE)
    whole[ours.token_map] = stored.pop("lm_head.weight")
    save_file({**stored, "lm_heads.0.weight": whole}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("medusa_fc_bias", "hidden_size"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read(tmp_path)
    theirs = dict(found.heads.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.named_parameters())
    assert found.accuracies is None


def refusal(folder: Path, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        read(folder, **options)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: stored.pop("blocks.1.layers.0.weight"), ["blocks.1.layers.0.weight [24, 24] is missing"]),
        (lambda stored: stored.pop("blocks.2.layers.1.bias"), ["blocks.2.layers.1.bias [24] is missing"]),
        (lambda stored: stored.update(extra=torch.ones(2)), ["extra [2] is not expected"]),
        (
            lambda stored: stored.update({"blocks.3.layers.0.weight": torch.ones(24, 24)}),
            ["blocks.3.layers.0.weight [24, 24] is not expected"],
        ),
        (
            lambda stored: stored.update({"lm_heads.0.weight": torch.ones(9, 24), "lm_heads.1.weight": torch.ones(53, 9)}),
            ["lm_heads.0.weight is [9, 24], expected [53, 24]", "lm_heads.1.weight is [53, 9]", "2 faults"],
        ),
        (lambda stored: stored.update({"blocks.0.layers.0.bias": torch.ones(24).to(torch.int8)}), ["is I8, expected F32 or"]),
        (lambda stored: stored.update({"token_map": torch.arange(53)}), ["token_map [53] is not expected"]),
    ],
    ids=["missing", "bias missing", "unknown", "one head more", "shapes", "dtype", "map"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    change(stored)
    save_file(stored, tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    assert [word for word in words if word not in message] == []


def test_biases_that_the_configuration_denies_are_not_dropped(tmp_path):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "medusa_fc_bias": False}))
    message = refusal(tmp_path)
    assert "6 faults" in message and "blocks.2.layers.1.bias [24] is not expected" in message


@pytest.mark.parametrize("original", [False, True], ids=["vllm", "original"])
def test_heads_of_another_model_are_refused_with_both_numbers(tmp_path, original):
    ours = heads(num_layers=1)
    write_medusa(tmp_path, ours, dtype=torch.float32)
    if original:
        stored = load_file(tmp_path / "model.safetensors")
        names = {"blocks": lambda words: f"{words[1]}.0.linear.{words[4]}", "lm_heads": lambda words: f"{words[1]}.1.weight"}
        renamed = {names[name.split(".")[0]](name.split(".")): tensor for name, tensor in stored.items()}
        save_file(renamed, tmp_path / "medusa_lm_head.safetensors")
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "config.json").write_text("{}")
    for options, words in (({"hidden_size": 32}, ("hidden size", "24", "32")), ({"vocab_size": 99}, ("vocabulary", "53", "99"))):
        message = refusal(tmp_path, **options)
        assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_with_the_remedy(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    message = refusal(tmp_path)
    assert name in message and "never" in message and "weights_only=True" in message and "medusa_lm_head.safetensors" in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two'"),
        ({"head_accuracies": [[0.5]]}, "3 lists of shares"),
        ({"head_accuracies": [[0.5], [0.2], [1.5]]}, "from 0 to 1"),
        ({"truncated_vocab_size": 20}, "token_map [20] is missing"),
        ({"truncated_vocab_size": 90}, "truncated_vocab_size"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path, values, words):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **values}))
    assert words in refusal(tmp_path)


def test_a_map_to_tokens_that_do_not_exist_is_refused(tmp_path):
    ours = heads(truncated_vocab_size=FEW)
    ours.token_map[3] = WORDS
    write_medusa(tmp_path, ours, dtype=torch.float32)
    message = refusal(tmp_path)
    assert "token_map" in message and "53" in message and "0 to 52" in message
