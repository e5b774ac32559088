"""A training moves to one device as a whole. PyTorch's "meta" device stands in for a GPU: it refuses tensors of other devices."""

from __future__ import annotations

import contextlib

import pytest
import torch

from hasten.core.errors import InvalidOption
from hasten.training.corpus import Batch
from hasten.training.device import choose_device, move_decoder
from hasten.training.distill import distill_task
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.distill.teacher import LiveTeacher
from hasten.training.optimizer import Optimizer
from hasten.training.predicted_rows import PredictedRows
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cpu", False, "cpu"), ("cuda", True, "cuda")],
)
def test_a_gpu_is_used_where_there_is_one(monkeypatch, name, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(name) == expected


def test_a_missing_gpu_and_an_unknown_device_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidOption, match="PyTorch finds no GPU"):
        choose_device("cuda")
    with pytest.raises(InvalidOption, match="allowed: auto, cpu, cuda"):
        choose_device("cuda:0")


RECIPES = [DistillRecipe(), DistillRecipe(loss="js", hidden_weight=0.5, hard_label_weight=0.3), DistillRecipe(loss="sft")]


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.loss)
def test_a_loss_reads_no_tensor_of_another_device(tiny, monkeypatch, name, recipe):
    teacher, student = TargetModel.load(tiny(name)), TrainableModel.load(tiny(name))
    rows = PredictedRows(torch.arange(62, device="meta"), torch.zeros(62, dtype=torch.int64, device="meta"))
    monkeypatch.setattr(distill_task, "predicted_rows", lambda batch: rows)  # a mask's size is unknown on this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it has no such context
    batch = Batch(torch.zeros(2, 32, dtype=torch.int64), 0)
    move_decoder(student.decoder, "meta")

    def loss() -> torch.Tensor:
        shape = {"teacher_layers": 3, "teacher_hidden_size": 64}
        task = DistillTask(student, LiveTeacher(teacher), recipe, **shape)
        total = task.loss(batch)
        total.backward()
        assert {parameter.grad.device.type for parameter in task.parameters().values()} == {"meta"}
        return total

    if recipe.needs_teacher:
        with pytest.raises((RuntimeError, NotImplementedError)):  # negative control: a teacher that was left behind
            loss()
    move_decoder(teacher.decoder, "meta")
    assert loss().device.type == "meta"
    assert {values.device.type for values in student.decoder.rotary.inverse_frequencies.values()} <= {"meta"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_restored_moments_lie_beside_their_parameters(name):
    parameter = torch.nn.Parameter(torch.zeros(4, 4, device="meta"))
    optimizer = Optimizer(name, {"layers.0": parameter}, lr=0.1, weight_decay=0.0)
    optimizer.restore({"layers.0": {"exp_avg": torch.ones(4, 4), "step": torch.tensor(3.0)}})
    moments = {moment: value for moment, _, value in optimizer.tensors()}
    assert moments["exp_avg"].device.type == "meta" and moments["step"].device.type == "cpu" and float(moments["step"]) == 3


def test_muon_trains_matrices_between_hidden_states_and_no_head():
    names = ("layers.0", "score", "lm_head.format.weight", "embedding.weight")
    parameters = {name: torch.nn.Parameter(torch.ones(4, 4)) for name in names}
    optimizer = Optimizer("muon", parameters, lr=0.1, weight_decay=0.0)
    for parameter in parameters.values():
        parameter.grad = torch.ones(4, 4)
    optimizer.step(0.1)
    assert {name for moment, name, _ in optimizer.tensors() if moment == "momentum_buffer"} == {"layers.0"}
