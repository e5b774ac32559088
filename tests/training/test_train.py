"""A whole training notices early what cannot work, and late what has changed since it began."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.core.errors import CapacityError, HastenError, InvalidOption
from hasten.training import train as train_module
from hasten.training.base import Recipe
from hasten.training.draft_model.recipe import DraftModelRecipe
from hasten.training.eagle.recipe import EagleRecipe
from hasten.training.early_exit.recipe import EarlyExitRecipe
from hasten.training.medusa.recipe import MedusaRecipe
from hasten.training.medusa.task import MedusaTask
from hasten.training.options import TrainOptions
from hasten.training.train import train

OPTIONS = TrainOptions(steps=3, batch=1, seq_len=32, save_every=0)


def after(calls: int):
    """Asks to stop after so many steps."""
    left = iter([False] * calls)
    return lambda: next(left, True)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (EarlyExitRecipe(layers=(40,)), "exits after 40 layers"),
        (MedusaRecipe(draft_vocab=102), "got 102"),
        (EagleRecipe(aux_layers=(1, 2, 9)), "1, 2, 9"),
        (EagleRecipe(init_from="demo-eagle"), "hidden size 256"),
        (DraftModelRecipe(hidden=24), "hidden=24"),
        (DraftModelRecipe(init_from="demo-draft"), "8192 tokens"),
    ],
    ids=["exits", "medusa", "eagle", "eagle start", "draft", "draft start"],
)
def test_what_the_model_refuses_is_refused_before_it_writes_texts(model, periodic, tmp_path, monkeypatch, recipe: Recipe, words):
    written = []
    monkeypatch.setattr(train_module, "generate", lambda *arguments, **_: written.append(arguments) or [list(range(3, 67))] * 4)
    with pytest.raises(HastenError, match=words):
        train(str(model), periodic, tmp_path / "out", recipe, TrainOptions(steps=1, batch=1, seq_len=32, self_distill=4))
    assert not written and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [EagleRecipe, DraftModelRecipe])
def test_a_start_that_was_trained_again_is_not_gone_on_with(model, periodic, tmp_path, kind):
    """It has the same name, configuration and sizes: one number in the middle of its weights is another."""
    start, out = tmp_path / "start", tmp_path / "out"
    begun = EagleRecipe(ttt_steps=2) if kind is EagleRecipe else DraftModelRecipe(layers=1, hidden=32)
    assert train(str(model), periodic, start, begun, OPTIONS) is not None
    recipe = kind(init_from=str(start))
    assert train(str(model), periodic, out, recipe, OPTIONS, stop=after(1)) is None
    weights = start / "model.safetensors"
    kept = tmp_path / "kept"
    shutil.copyfile(weights, kept)
    tensors = load_file(weights)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InvalidOption, match="start_sha256 was"):
        train(str(model), periodic, out, recipe, OPTIONS)
    shutil.copyfile(kept, weights)
    assert train(str(model), periodic, out, recipe, OPTIONS) is not None
    assert len(json.loads((out / "training.json").read_text())["start_sha256"]) == 64
    assert "start_sha256" not in json.loads((start / "training.json").read_text())


@pytest.mark.parametrize("fails", ["the weights", "the report"])
def test_a_result_that_finds_no_room_is_told_and_not_lost(model, periodic, tmp_path, monkeypatch, fails):
    out, recipe = tmp_path / "out", MedusaRecipe(heads=1)
    whole = train(str(model), periodic, tmp_path / "whole", recipe, OPTIONS)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "the weights":
            patch.setattr(MedusaTask, "save", full)
        else:
            patch.setattr(Path, "write_text", full)
            patch.setattr(MedusaTask, "save", lambda *_: None)
        with pytest.raises(CapacityError) as error:
            train(str(model), periodic, out, recipe, OPTIONS)
    assert f"{out} cannot be written: got [Errno 28] No space left on device. Free space" in str(error.value)
    done = train(str(model), periodic, out, recipe, OPTIONS)
    assert done == whole and (out / "training.json").read_bytes() == (tmp_path / "whole" / "training.json").read_bytes()
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_is_not_read_into_memory_to_tell_it_from_another(model, tmp_path):
    file = tmp_path / "large.txt"
    with file.open("wb") as stream:
        stream.truncate(64 << 20)
    tracemalloc.start()
    try:
        train_module._settings(model, file, MedusaRecipe(), OPTIONS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
