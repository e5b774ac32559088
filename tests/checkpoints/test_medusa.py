"""Medusa heads on disk: a round trip keeps every bit, and tensors that do not fit are named."""

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

HIDDEN_SIZE, VOCAB_SIZE, TRUNCATED_SIZE = 24, 53, 20


def context(dtype: torch.dtype = torch.float32) -> LayerContext:
    ops = TorchOps()
    return LayerContext(ops, DenseFormatFactory(ops, dtype), dtype)


def heads(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> MedusaHeads:
    values = {
        "num_heads": 3,
        "num_layers": 2,
        "hidden_size": HIDDEN_SIZE,
        "vocab_size": VOCAB_SIZE,
        "truncated_vocab_size": VOCAB_SIZE,
    }
    result = MedusaHeads(MedusaSpec(**{**values, "bias": True, "lm_head": "own", **changes}), context(dtype))
    generator = torch.Generator().manual_seed(seed)
    for parameter in result.parameters():
        parameter.normal_(generator=generator)
    if result.token_map is not None:
        result.token_map.copy_(torch.randperm(VOCAB_SIZE, generator=generator)[: len(result.token_map)])
    return result


def read(folder: Path, hidden_size: int = HIDDEN_SIZE, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32):
    return read_medusa(folder, hidden_size=hidden_size, vocab_size=vocab_size, layer_context=context(dtype))


def model_lm_head() -> Linear:
    layer_context = context()
    lm_head = Linear(layer_context.formats.lm_head(HIDDEN_SIZE, VOCAB_SIZE), bias=False, layer_context=layer_context)
    nn.init.normal_(lm_head.format.weight, generator=torch.Generator().manual_seed(7))
    return lm_head


KINDS = {
    "own": {},
    "shared": {"lm_head": "shared"},
    "model": {"lm_head": "model"},
    "one layer without bias": {"num_layers": 1, "bias": False},
    "truncated": {"truncated_vocab_size": TRUNCATED_SIZE},
    "truncated lm_head of the model": {"truncated_vocab_size": TRUNCATED_SIZE, "lm_head": "model"},
}


def assert_equal_heads(loaded: MedusaHeads, written: MedusaHeads) -> None:
    assert loaded.spec == written.spec
    parameters = dict(loaded.named_parameters())
    assert parameters.keys() == dict(written.named_parameters()).keys()
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in written.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_keeps_every_bit(tmp_path, kind, dtype):
    written = heads(dtype=dtype, **KINDS[kind])
    accuracies = [[0.5, 0.25], [0.3, 0.1], [0.125, 0.0]]
    write_medusa(tmp_path, written, dtype=dtype, accuracies=accuracies, base_model="demo")
    loaded = read(tmp_path, dtype=dtype)
    assert loaded.accuracies == tuple(map(tuple, accuracies))
    assert_equal_heads(loaded.heads, written)
    assert (written.token_map is None) == (loaded.heads.token_map is None)
    assert written.token_map is None or torch.equal(written.token_map, loaded.heads.token_map)


def test_tensors_and_configuration_have_the_names_of_vllm(tmp_path):
    write_medusa(tmp_path, heads(num_layers=1), dtype=torch.float32)
    assert set(load_file(tmp_path / "model.safetensors")) == {
        name
        for head in range(3)
        for name in (f"blocks.{head}.layers.0.weight", f"blocks.{head}.layers.0.bias", f"lm_heads.{head}.weight")
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("medusa", ["MedusaModel"])
    assert (config["num_heads"], config["num_hidden_layers"], config["hidden_size"]) == (3, 1, HIDDEN_SIZE)
    assert (config["vocab_size"], config["truncated_vocab_size"]) == (VOCAB_SIZE, VOCAB_SIZE)
    assert (config["medusa_fc_bias"], config["original_lm_head"]) == (True, False)
    # vLLM interprets any other key that contains "num" and "heads" or "layers".
    assert [name for name in config if "num" in name] == ["num_heads", "num_hidden_layers"]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_formula(kind):
    """x + silu(W x + b) in every layer, then the lm_head of the kind."""
    medusa, full_lm_head = heads(**KINDS[kind]), model_lm_head()
    spec, weights = medusa.spec, dict(medusa.named_parameters())
    x = torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(2))
    lm_head = full_lm_head
    if spec.lm_head == "model" and medusa.token_map is not None:
        lm_head = full_lm_head.slice_rows(medusa.token_map, context())
    logits = medusa(x, lm_head)
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
            "model": lambda: (
                full_lm_head.format.weight[:] if medusa.token_map is None else full_lm_head.format.weight[medusa.token_map]
            ),
        }[spec.lm_head]()
        torch.testing.assert_close(logits[head], state @ matrix.T, atol=1e-4, rtol=1e-4)
    indices = torch.tensor([0, spec.truncated_vocab_size - 1])
    assert medusa.token_ids(indices).tolist() == (indices if medusa.token_map is None else medusa.token_map[indices]).tolist()


@pytest.mark.parametrize("prefix", ["", "medusa_head.", "medusa_heads."])
@pytest.mark.parametrize("config", [{}, {"medusa_num_heads": 2, "medusa_num_layers": 2}], ids=["bare", "wrong number"])
def test_the_original_layout_is_read(tmp_path, prefix, config):
    """The file is right where the original code's configuration has another number of heads."""
    written = heads()
    tensors = {}
    for name, parameter in written.named_parameters():
        parts = name.replace(".format.", ".").split(".")
        original = f"{parts[1]}.{parts[3]}.linear.{parts[4]}" if parts[0] == "blocks" else f"{parts[1]}.2.weight"
        tensors[prefix + original] = parameter.clone()
    save_file(tensors, tmp_path / "medusa_lm_head.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model", **config}))
    loaded = read(tmp_path).heads
    assert (loaded.spec.num_heads, loaded.spec.num_layers, loaded.spec.bias, loaded.spec.lm_head) == (3, 2, True, "own")
    assert_equal_heads(loaded, written)


def test_variants_of_vllms_layout_are_read(tmp_path):
    """No bias in the configuration, and a full shared lm_head under the name of the first head."""
    written = heads(lm_head="shared", truncated_vocab_size=TRUNCATED_SIZE)
    write_medusa(tmp_path, written, dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    full = torch.randn(VOCAB_SIZE, HIDDEN_SIZE)
    full[written.token_map] = stored.pop("lm_head.weight")
    save_file({**stored, "lm_heads.0.weight": full}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("medusa_fc_bias", "hidden_size"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = read(tmp_path)
    assert_equal_heads(loaded.heads, written)
    assert loaded.accuracies is None


def test_a_shared_lm_head_under_both_names_is_refused(tmp_path):
    write_medusa(tmp_path, heads(lm_head="shared"), dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({**stored, "lm_heads.0.weight": stored["lm_head.weight"].clone()}, tmp_path / "model.safetensors")
    assert "lm_head.weight [53, 24] is not expected" in refusal(tmp_path)


def refusal(folder: Path, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        read(folder, **options)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("change", "expected"),
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
        (lambda stored: stored["blocks.0.layers.0.weight"].fill_(torch.nan), ["blocks.0.layers.0.weight of", "NaN"]),
        (lambda stored: stored["blocks.0.layers.0.bias"].fill_(torch.inf), ["blocks.0.layers.0.bias of", "infinity"]),
    ],
    ids=["missing", "bias missing", "unknown", "one head more", "shapes", "dtype", "map", "NaN", "infinity"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, expected):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    change(stored)
    save_file(stored, tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    assert [part for part in expected if part not in message] == []


def test_biases_that_contradict_the_configuration_are_refused(tmp_path):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "medusa_fc_bias": False}))
    message = refusal(tmp_path)
    assert "6 faults" in message and "blocks.2.layers.1.bias [24] is not expected" in message


@pytest.mark.parametrize("original", [False, True], ids=["vllm", "original"])
def test_heads_of_another_model_are_refused_with_both_numbers(tmp_path, original):
    write_medusa(tmp_path, heads(num_layers=1), dtype=torch.float32)
    if original:
        stored = load_file(tmp_path / "model.safetensors")
        names = {"blocks": lambda parts: f"{parts[1]}.0.linear.{parts[4]}", "lm_heads": lambda parts: f"{parts[1]}.1.weight"}
        renamed = {names[name.split(".")[0]](name.split(".")): tensor for name, tensor in stored.items()}
        save_file(renamed, tmp_path / "medusa_lm_head.safetensors")
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "config.json").write_text("{}")
    for options, expected in (({"hidden_size": 32}, ("hidden size", "24", "32")), ({"vocab_size": 99}, ("vocabulary", "53", "99"))):
        message = refusal(tmp_path, **options)
        assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_with_the_remedy(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    message = refusal(tmp_path)
    assert name in message and "never" in message and "weights_only=True" in message and "medusa_lm_head.safetensors" in message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two'"),
        ({"head_accuracies": [[0.5]]}, "3 lists of shares"),
        ({"head_accuracies": [[0.5], [0.2], [1.5]]}, "from 0 to 1"),
        ({"truncated_vocab_size": 20}, "token_map [20] is missing"),
        ({"truncated_vocab_size": 90}, "truncated_vocab_size"),
    ],
)
def test_an_invalid_configuration_is_refused(tmp_path, values, expected):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **values}))
    assert expected in refusal(tmp_path)


def test_a_token_map_outside_the_vocabulary_is_refused(tmp_path):
    written = heads(truncated_vocab_size=TRUNCATED_SIZE)
    written.token_map[3] = VOCAB_SIZE
    write_medusa(tmp_path, written, dtype=torch.float32)
    message = refusal(tmp_path)
    assert "token_map" in message and "53" in message and "0 to 52" in message


@pytest.mark.parametrize("name", ["num_heads", "num_hidden_layers"])
@pytest.mark.parametrize("count", [14, 10**9, 2**63, 10**400], ids=["14", "10**9", "2**63", "10**400"])
def test_no_head_is_built_for_a_count_that_the_weights_do_not_have(tmp_path, name, count):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: count}))
    with pytest.raises(CheckpointError, match=f"Medusa heads|{name}"):
        read(tmp_path)


def test_no_head_is_built_for_a_number_in_the_name_of_a_tensor(tmp_path):
    write_medusa(tmp_path, heads(), dtype=torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("blocks.999999999.layers.0.weight", f"blocks.{'9' * 5000}.layers.0.weight"):
        save_file({**tensors, name: torch.zeros(HIDDEN_SIZE, HIDDEN_SIZE)}, tmp_path / "model.safetensors")
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_heads": None, "num_hidden_layers": None}))
        with pytest.raises(CheckpointError, match="Medusa heads"):
            read(tmp_path)
