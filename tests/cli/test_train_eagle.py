"""``hasten train eagle``: the head loads beside its model, and refusals name both numbers."""

from __future__ import annotations

import json

import pytest
from tests.tiny_models import tiny_checkpoint, word_tokenizer

from hasten.models.eagle import load_eagle
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_checkpoint("llama-gqa", tmp_path_factory.mktemp("tiny"))
    word_tokenizer(101).save_pretrained(folder)
    return folder


@pytest.fixture
def command(model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{10 + position % 7}" for position in range(3000)))
    return ("train", "eagle", str(model), "--data", str(file), "--out", str(tmp_path / "out"), "--batch", "2", "--seq-len", "64")


def test_a_trained_head_loads_beside_its_model(hasten, command, model, tmp_path):
    shape = ("--ttt-steps", "3", "--draft-vocab", "20", "--intermediate", "32", "--no-norm-before-residual")
    ran = hasten(*command, "--steps", "20", *shape, "--aux-layers", "1", "--aux-layers", "2", "--aux-layers", "2")
    assert ran.code == 0, ran.err
    titles, *table = [line.split() for line in ran.out.splitlines()]
    assert titles[:3] == ["DRAFT", "TOKEN", "ACCEPTANCE"] and [row[0] for row in table[:-1]] == ["1", "2", "3"]
    loaded = load_eagle(tmp_path / "out", load_decoder(model, ops=TorchOps()).decoder)
    spec = loaded.head.spec
    assert (spec.aux_layers, spec.draft_vocab_size, spec.norm_before_residual) == ((1, 2, 2), 20, False)
    assert spec.layer.mlp.intermediate_size == 32
    assert {*range(10, 17)} < {*loaded.head.target_ids.tolist()}
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert len(loaded.config.accuracies) == len(report["held_out_score"]["acceptance"]) == loaded.config.num_speculative_tokens == 3
    assert table[0][1] == f"{report['held_out_score']['acceptance'][0]:.1%}"


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--draft-vocab", "102"], ["102", "101"]),
        (["--aux-layers", "1", "--aux-layers", "2", "--aux-layers", "9"], ["1, 2, 9", "1 to 3"]),
        (["--aux-layers", "1"], ["aux_layers=(1,)", "exactly 3 items"]),
        (["--ttt-steps", "17"], ["ttt_steps=17", "1 to 16"]),
        (["--guesses", "3"], ["renamed to --ttt-steps"]),
        (["--state-layers", "1"], ["renamed to --aux-layers"]),
        (["--start", "demo-eagle"], ["renamed to --init-from"]),
    ],
)
def test_a_training_that_cannot_work_is_refused(hasten, command, options, messages):
    ran = hasten(*command, "--steps", "20", *options)
    assert (ran.code, ran.out) == (2, "")
    assert all(message in ran.err for message in messages) and ran.err.count("error: ") == 1
