"""Early exits on disk: a round trip keeps every bit, and tensors or sizes that do not fit are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.checkpoints.formats.exits import ExitsCheckpoint, read_exits, write_exits
from hasten.core.early_exit import ExitCalibration
from hasten.core.errors import CheckpointError
from hasten.core.sampling_params import SamplingParams
from hasten.layers.early_exit import ExitHeads, ExitHeadsSpec, PromptHashTable
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.ops.torch.backend import TorchOps

HIDDEN_SIZE, NUM_LAYERS, VOCAB_SIZE = 24, 6, 53
LAYERS = (2, 4, 5)
CALIBRATIONS = (
    ExitCalibration(
        rule="softmax",
        tolerance=0.01,
        certainty=0.95,
        threshold=0.8125,
        decay=4.0,
        window=256,
        num_texts=200,
        mean_layers=5.25,
        mean_risk=0.0071,
    ),
    ExitCalibration(
        rule="entropy",
        tolerance=0.02,
        certainty=0.95,
        threshold=1.12,
        decay=None,
        window=256,
        num_texts=200,
        mean_layers=6.0,
        mean_risk=-0.001,
    ),
)


def context(dtype: torch.dtype = torch.float32) -> LayerContext:
    ops = TorchOps()
    return LayerContext(ops, DenseFormatFactory(ops, dtype), dtype)


def random_exits(dtype: torch.dtype = torch.float32, tables: bool = True) -> ExitsCheckpoint:
    exits = ExitHeads(
        ExitHeadsSpec(layers=LAYERS, num_layers=NUM_LAYERS, hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE), context(dtype)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in exits.parameters():
        parameter.normal_(generator=generator)
    if not tables:
        return ExitsCheckpoint(exits)
    layers = torch.tensor([*LAYERS, NUM_LAYERS], dtype=torch.int32)
    token_layers = layers[torch.randint(4, (VOCAB_SIZE,), generator=generator)]
    prompt_hash_table = PromptHashTable(
        torch.randn(3, HIDDEN_SIZE, generator=generator), layers[torch.randint(4, (8,), generator=generator)]
    )
    return ExitsCheckpoint(exits, CALIBRATIONS, token_layers, prompt_hash_table, (0.25, 0.5, 1.0), torch.tensor([0, 7, 8, 52]))


def read(folder: Path, dtype: torch.dtype = torch.float32, **changes: int) -> ExitsCheckpoint:
    return read_exits(
        folder,
        **{"hidden_size": HIDDEN_SIZE, "num_layers": NUM_LAYERS, "vocab_size": VOCAB_SIZE, **changes},
        layer_context=context(dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_round_trip_keeps_every_bit(tmp_path, dtype):
    written = random_exits(dtype)
    write_exits(tmp_path, written, dtype=dtype, base_model="demo")
    loaded = read(tmp_path, dtype)
    assert loaded.exits.spec == written.exits.spec and loaded.calibrations == CALIBRATIONS
    parameters = dict(loaded.exits.named_parameters())
    assert parameters.keys() == dict(written.exits.named_parameters()).keys()
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in written.exits.named_parameters())
    assert torch.equal(loaded.token_layers, written.token_layers)
    assert torch.equal(loaded.draft_ids, written.draft_ids)
    assert loaded.agreements == (0.25, 0.5, 1.0)
    assert torch.equal(loaded.prompt_hash_table.planes_PE, written.prompt_hash_table.planes_PE)
    assert torch.equal(loaded.prompt_hash_table.layers, written.prompt_hash_table.layers)
    assert loaded.calibration("softmax", 0.01) == CALIBRATIONS[0]
    assert loaded.calibration("softmax", 0.02) is None and loaded.calibration("saturation", 0.01) is None


def test_tables_and_calibrations_may_be_left_out(tmp_path):
    write_exits(tmp_path, random_exits(tables=False), dtype=torch.float32)
    loaded = read(tmp_path)
    assert (loaded.calibrations, loaded.token_layers, loaded.prompt_hash_table) == ((), None, None)


def test_tensors_have_the_documented_names_and_dtypes(tmp_path):
    write_exits(tmp_path, random_exits(), dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    parts = {"translate.weight": torch.bfloat16, "translate.bias": torch.bfloat16}
    parts |= {"classify.weight": torch.float32, "classify.bias": torch.float32}
    dtypes = {f"exits.{layer}.{part}": dtype for layer in LAYERS for part, dtype in parts.items()}
    dtypes |= {"token_layers": torch.int32, "text_planes": torch.float32, "text_layers": torch.int32, "draft_ids": torch.int32}
    assert {name: tensor.dtype for name, tensor in stored.items()} == dtypes
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["exit_layers"], config["num_hidden_layers"]) == ("hasten_exits", [2, 4, 5], 6)
    assert (config["hidden_size"], config["vocab_size"], config["dtype"]) == (HIDDEN_SIZE, VOCAB_SIZE, "bfloat16")


def test_an_exit_head_equals_its_formula(tmp_path):
    write_exits(tmp_path, random_exits(), dtype=torch.float32)
    stored, exit_ = load_file(tmp_path / "model.safetensors"), read(tmp_path).exits.at(4)
    x = torch.randn(7, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(exit_.tuned_lens(x), x + x @ stored["exits.4.translate.weight"].T + stored["exits.4.translate.bias"])
    direction = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(
        exit_.agreement_logit(x), direction @ stored["exits.4.classify.weight"] + stored["exits.4.classify.bias"]
    )


def refusal(folder: Path, **changes: int) -> str:
    with pytest.raises(CheckpointError) as error:
        read(folder, **changes)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": 32}, ("another hidden size", "24", "32")),
        ({"num_layers": 8}, ("another number of layers", "=6", "8, the model's")),
        ({"vocab_size": 99}, ("another vocabulary", "53", "99")),
    ],
)
def test_exits_of_another_model_are_refused_with_both_numbers(tmp_path, changes, expected):
    write_exits(tmp_path, random_exits(), dtype=torch.float32)
    message = refusal(tmp_path, **changes)
    assert [part for part in expected if part not in message] == [] and "hasten train exits" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda stored: stored.pop("exits.4.translate.weight"), ["exits.4.translate.weight [24, 24] is missing"]),
        (
            lambda stored: (stored.pop("exits.2.classify.bias"), stored.pop("exits.5.translate.bias")),
            ["exits.2.classify.bias [1] is missing", "exits.5.translate.bias [24] is missing", "2 faults"],
        ),
        (lambda stored: stored.update({"exits.3.translate.bias": torch.ones(24)}), ["exits.3.translate.bias [24] is not expected"]),
        (lambda stored: stored.update({"exits.2.classify.weight": torch.ones(9)}), ["is [9], expected [24]"]),
        (lambda stored: stored.update({"exits.2.translate.bias": torch.ones(24).to(torch.int8)}), ["is I8, expected F32 or"]),
        (lambda stored: stored.update({"token_layers": torch.ones(9, dtype=torch.int32)}), ["token_layers is [9], expected [53]"]),
        (lambda stored: stored.update({"token_layers": torch.full((53,), 6)}), ["token_layers is I64, expected I32"]),
        (lambda stored: stored.pop("text_layers"), ["text_layers [8] is missing"]),
        (lambda stored: stored.pop("text_planes"), ["text_planes", "is missing"]),
        (lambda stored: stored.update({"text_layers": torch.full((4,), 6, dtype=torch.int32)}), ["is [4], expected [8]"]),
        (lambda stored: stored["token_layers"].fill_(3), ["token_layers", "got 3", "2, 4, 5, 6"]),
        (lambda stored: stored["text_layers"].fill_(7), ["text_layers", "got 7"]),
        (lambda stored: stored.update({"draft_ids": stored["draft_ids"].long()}), ["draft_ids is I64, expected I32"]),
        (lambda stored: stored.update({"draft_ids": torch.ones(2, 2, dtype=torch.int32)}), ["draft_ids is [2, 2]"]),
        (lambda stored: stored["draft_ids"].add_(1), ["draft_ids", "1 to 53", "0 to 52, rising"]),
        (lambda stored: stored["draft_ids"].copy_(torch.tensor([0, 8, 7, 9])), ["draft_ids", "rising"]),
        (lambda stored: stored["draft_ids"].copy_(torch.tensor([0, 8, 8, 9])), ["draft_ids", "each once"]),
        (lambda stored: stored["draft_ids"].copy_(torch.tensor([-1, 8, 9, 10])), ["draft_ids", "-1 to 10"]),
        (lambda stored: stored["exits.4.translate.weight"].fill_(torch.nan), ["exits.4.translate.weight of", "NaN"]),
        (lambda stored: stored["exits.2.classify.bias"].fill_(torch.inf), ["exits.2.classify.bias of", "infinity"]),
        (lambda stored: stored["text_planes"].fill_(torch.nan), ["text_planes of", "NaN"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, expected):
    write_exits(tmp_path, random_exits(), dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    change(stored)
    save_file(stored, tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize("name", ["exits.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_with_the_remedy(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    message = refusal(tmp_path)
    assert name in message and "never" in message and "weights_only=True" in message and "model.safetensors" in message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "medusa"}, "model_type='medusa'"),
        ({"hidden_size": None}, "hidden_size=None"),
        ({"num_hidden_layers": "6"}, "num_hidden_layers='6'"),
        ({"exit_layers": []}, "1 to 5, rising"),
        ({"exit_layers": [2, 4, 6]}, "got [2, 4, 6]"),
        ({"exit_layers": [0, 4, 5]}, "1 to 5, rising"),
        ({"exit_layers": [4, 2, 5]}, "rising"),
        ({"exit_layers": 2}, "got 2"),
        ({"exit_layers": [2, 4]}, "exits.5.translate.weight [24, 24] is not expected"),
        ({"agreements": [0.5, 0.5]}, "3 shares from 0 to 1"),
        ({"agreements": [0.5, 0.5, 1.5]}, "3 shares from 0 to 1"),
        ({"agreements": 0.5}, "got 0.5"),
        ({"calibrations": {}}, "not a list"),
        ({"calibrations": [{"rule": "softmax"}]}, "exactly the fields"),
    ],
)
def test_an_invalid_configuration_is_refused(tmp_path, values, expected):
    write_exits(tmp_path, random_exits(), dtype=torch.float32)
    edit(tmp_path, **values)
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rule", "sure"),
        ("mean_risk", "0.1"),
        ("tolerance", 2),
        ("certainty", "95 %"),
        ("threshold", None),
        ("decay", 4.0),
        ("window", 0),
        ("num_texts", 2.5),
    ],
)
def test_a_calibration_out_of_range_is_refused(tmp_path, name, value):
    write_exits(tmp_path, random_exits(), dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    config["calibrations"][1][name] = value
    edit(tmp_path, calibrations=config["calibrations"])
    assert f"{name}={value!r}" in refusal(tmp_path)


@pytest.mark.parametrize("decay", [2.0, None, -1, "4.0"])
def test_thresholds_calibrated_with_another_decay_are_refused_with_both_values(tmp_path, decay):
    write_exits(tmp_path, random_exits(), dtype=torch.float32)
    config = json.loads((tmp_path / "config.json").read_text())
    config["calibrations"][0]["decay"] = decay
    edit(tmp_path, calibrations=config["calibrations"])
    assert f"decay={decay!r}, but thresholds of softmax are used with {SamplingParams().exit_decay}" in refusal(tmp_path)


def edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    "config",
    [
        {"exit_layers": [10**400]},
        {"exit_layers": [2, 2**63]},
        {"num_hidden_layers": 10**9},
        {"agreements": [float("nan"), 0.5, 1.0]},
        {"calibrations": [{"rule": []}]},
        {"calibrations": {"rule": "softmax"}},
    ],
    ids=lambda config: f"{next(iter(config))} {str(config)[-20:]}",
)
def test_values_that_no_exits_have_are_refused(config, tmp_path):
    write_exits(tmp_path, random_exits(), dtype=torch.float32)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **config}))
    with pytest.raises(CheckpointError, match=next(iter(config))):
        read(tmp_path)
