"""``train`` refuses bad recipes before it begins, and does not resume after a change of its inputs."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.conftest import stop_after

from hasten.core.errors import CapacityError, HastenError, InvalidOption
from hasten.training import read_corpus
from hasten.training.documents import file_digest
from hasten.training.medusa_task import MedusaTask
from hasten.training.options import TrainOptions
from hasten.training.recipes import DraftModelRecipe, EagleRecipe, EarlyExitRecipe, MedusaRecipe, Recipe
from hasten.training.train import train

OPTIONS = TrainOptions(steps=3, batch=1, seq_len=32, save_every=0)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (EarlyExitRecipe(layers=(40,)), "exits after 40 layers"),
        (MedusaRecipe(draft_vocab=102), "got 102"),
        (EagleRecipe(aux_layers=(1, 2, 9)), "1, 2, 9"),
        (EagleRecipe(init_from="demo-eagle"), "hidden size 256"),
        (DraftModelRecipe(hidden=24), "hidden=24"),
        (DraftModelRecipe(init_from="demo-draft"), "8192 tokens"),
    ],
    ids=["exits", "medusa", "eagle", "eagle init_from", "draft", "draft init_from"],
)
def test_a_bad_recipe_is_refused_before_documents_are_generated(
    model, periodic_text, tmp_path, monkeypatch, recipe: Recipe, message
):
    calls = []
    documents = [list(range(3, 67))] * 4
    monkeypatch.setattr(read_corpus, "generate_documents", lambda *arguments, **_: calls.append(arguments) or documents)
    with pytest.raises(HastenError, match=message):
        train(str(model), periodic_text, tmp_path / "out", recipe, TrainOptions(steps=1, batch=1, seq_len=32, self_distill=4))
    assert not calls and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [EagleRecipe, DraftModelRecipe])
def test_a_run_is_not_resumed_after_a_change_of_its_initial_weights(model, periodic_text, tmp_path, kind):
    """One number in the middle of the weights changes; name, configuration and sizes do not."""
    initial, out = tmp_path / "initial", tmp_path / "out"
    first = EagleRecipe(ttt_steps=2) if kind is EagleRecipe else DraftModelRecipe(layers=1, hidden=32)
    assert train(str(model), periodic_text, initial, first, OPTIONS) is not None
    recipe = kind(init_from=str(initial))
    assert train(str(model), periodic_text, out, recipe, OPTIONS, should_stop=stop_after(1)) is None
    weights, backup = initial / "model.safetensors", tmp_path / "backup"
    shutil.copyfile(weights, backup)
    tensors = load_file(weights)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InvalidOption, match="init_from_sha256 was"):
        train(str(model), periodic_text, out, recipe, OPTIONS)
    shutil.copyfile(backup, weights)
    assert train(str(model), periodic_text, out, recipe, OPTIONS) is not None
    assert len(json.loads((out / "training.json").read_text())["init_from_sha256"]) == 64
    assert "init_from_sha256" not in json.loads((initial / "training.json").read_text())


@pytest.mark.parametrize("fault", ["weights", "report"])
def test_a_result_that_does_not_fit_the_disk_is_not_lost(model, periodic_text, tmp_path, monkeypatch, fault):
    out, recipe = tmp_path / "out", MedusaRecipe(heads=1)
    expected = train(str(model), periodic_text, tmp_path / "expected", recipe, OPTIONS)

    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fault == "weights":
            patch.setattr(MedusaTask, "save", disk_full)
        else:
            patch.setattr(Path, "write_text", disk_full)
            patch.setattr(MedusaTask, "save", lambda *_: None)
        with pytest.raises(CapacityError) as error:
            train(str(model), periodic_text, out, recipe, OPTIONS)
    assert f"{out} cannot be written: got [Errno 28] No space left on device. Free space" in str(error.value)
    assert train(str(model), periodic_text, out, recipe, OPTIONS) == expected
    assert (out / "training.json").read_bytes() == (tmp_path / "expected" / "training.json").read_bytes()
    resumed, uninterrupted = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "expected"))
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_the_data_is_hashed_without_reading_it_into_memory(tmp_path):
    file = tmp_path / "large.txt"
    with file.open("wb") as stream:
        stream.truncate(64 << 20)
    tracemalloc.start()
    try:
        file_digest(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
