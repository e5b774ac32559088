"""Small students in the training loop: what they learn by each loss, how they resume, and bfloat16."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from tests.training.conftest import PERIOD, stop_after

from hasten.compress.distill.forgetting import ForgettingTask
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import LOSSES, SFT, DistillRecipe
from hasten.training.distill.teacher import LiveTeacher
from hasten.training.examples import Example, Examples
from hasten.training.loop import TrainingLoop
from hasten.training.options import TrainOptions
from hasten.training.precision import autocast
from hasten.training.resume import ResumeFolder
from hasten.training.smaller_config import smaller_config
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

OPTIONS = TrainOptions(steps=150, batch=4, seq_len=32, seed=1)


@pytest.fixture(scope="module")
def target(fluent_model) -> TargetModel:
    return TargetModel.load(fluent_model)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """The periodic text, in which every seventh word or so is another one: the teacher knows more than the text says."""
    generator = torch.Generator().manual_seed(3)
    text = 10 + torch.arange(3000) % PERIOD
    noise = torch.rand(3000, generator=generator) < 0.15
    return Corpus.split([torch.where(noise, torch.randint(3, 97, (3000,), generator=generator), text).tolist()], 32, 0.1, None)


def make_task(target, recipe) -> DistillTask:
    student = TrainableModel.new(smaller_config(target.config, layers=2, hidden=32, remedy=""), 5)
    spec = target.spec
    return DistillTask(student, LiveTeacher(target), recipe, teacher_layers=spec.num_layers, teacher_hidden_size=spec.hidden_size)


def make_loop(target, corpus, out, recipe, options=OPTIONS) -> TrainingLoop:
    folder = ResumeFolder.open(out, {"kind": "distill"})
    return TrainingLoop(make_task(target, recipe), corpus, options, folder, TrainingCallback(), lr=0.01, weight_decay=0.01)


def mean_kl(score) -> float:
    return score.kl / score.num_positions


@pytest.fixture(scope="module")
def kl_of(target, corpus, tmp_path_factory):
    """Return a function from a loss to the validation KL after training with it."""
    known: dict[str, float] = {}

    def trained(loss: str) -> float:
        if loss not in known:
            loop = make_loop(target, corpus, tmp_path_factory.mktemp("out"), DistillRecipe(loss=loss))
            known[loss] = mean_kl(loop.run(lambda: False))
        return known[loss]

    return trained


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_brings_the_student_to_its_teacher(target, corpus, tmp_path, loss):
    loop = make_loop(target, corpus, tmp_path, DistillRecipe(loss=loss), dataclasses.replace(OPTIONS, steps=40))
    before = mean_kl(loop.task.evaluate(next(corpus.validation_batches(8, 32, 8))))
    assert before > 3.5 and mean_kl(loop.run(lambda: False)) < 0.5 * before


def test_the_teachers_distribution_teaches_more_than_the_text(kl_of):
    assert kl_of("forward-kl") < 0.6 * kl_of(SFT)


def test_a_student_with_hidden_states_learns_both(target, corpus, tmp_path):
    """The distance of hidden states falls by far more than it does by the divergence alone."""
    batch, distances = next(corpus.validation_batches(8, 32, 8)), []
    for weight in (1e-12, 1.0):
        loop = make_loop(target, corpus, tmp_path / str(weight), DistillRecipe(hidden_weight=weight))
        assert mean_kl(loop.run(lambda: False)) < 0.8
        with torch.no_grad():
            both = make_task(target, DistillRecipe(hidden_weight=1.0))
            both.student, both._hidden_loss = loop.task.student, loop.task._hidden_loss
            distances.append(float(both.loss(batch)) - mean_kl(both.evaluate(batch)))
    assert distances[1] < 0.75 * distances[0]


def test_a_resumed_training_continues_bit_for_bit_with_its_projections(target, corpus, tmp_path):
    recipe = DistillRecipe(loss="js", hidden_weight=0.5, hard_label_weight=0.1)
    options = dataclasses.replace(OPTIONS, steps=8, optimizer="muon", accumulate=2, save_every=0)
    results = []
    for name, stops in (("complete", ()), ("broken", (3, 2))):
        for steps in stops:
            assert make_loop(target, corpus, tmp_path / name, recipe, options).run(stop_after(steps)) is None
        loop = make_loop(target, corpus, tmp_path / name, recipe, options)
        assert loop.run(lambda: False) is not None
        results.append((loop.state.evaluations, {key: value.tolist() for key, value in loop.parameters.items()}))
    assert {"hidden_projections.0", "hidden_projections.1"} < set(results[0][1])
    assert results[0] == results[1]
    initial = make_task(target, recipe).parameters()
    assert all(parameter.tolist() != results[0][1][key] for key, parameter in initial.items()), "a parameter was not trained"


def test_projections_are_not_part_of_the_checkpoint(target, corpus, tmp_path):
    task = make_task(target, DistillRecipe(hidden_weight=1.0))
    task.save(tmp_path / "out", task.evaluate(next(corpus.validation_batches(1, 32, 1))))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "projection" in name]  # noqa: SIM118 (no mapping)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 2


@pytest.mark.parametrize("loss", [SFT, "forward-kl"])
def test_training_in_bfloat16_ends_near_that_in_float32(target, corpus, tmp_path, kl_of, loss):
    options = dataclasses.replace(OPTIONS, precision="bfloat16")
    score = make_loop(target, corpus, tmp_path, DistillRecipe(loss=loss), options).run(lambda: False)
    assert mean_kl(score) == pytest.approx(kl_of(loss), rel=0.15)


@pytest.mark.parametrize("name", ["gpt2", "qwen3-tied-bias", "llama-gqa"])
def test_losses_and_scores_in_bfloat16_are_close_for_every_kind_of_norm(tiny, tmp_path, name):
    shutil.copytree(tiny(name), tmp_path / "teacher")
    target = TargetModel.load(tmp_path / "teacher")
    ids = torch.randint(3, 97, (2000,), generator=torch.Generator().manual_seed(3))
    batch = Corpus.split([ids.tolist()], 32, 0.1, None).batch(0, 4, 32, 0)
    task = make_task(target, DistillRecipe(hidden_weight=0.5, hard_label_weight=0.2))
    expected, score = task.loss(batch).detach(), task.evaluate(batch)
    with autocast("bfloat16"):
        loss, rounded = task.loss(batch), task.evaluate(batch)
    assert loss.dtype == torch.float32 and not torch.equal(loss, expected)
    torch.testing.assert_close(loss.detach(), expected, rtol=0.02, atol=0)
    assert rounded.kl == pytest.approx(score.kl, rel=0.03) and rounded.nll == pytest.approx(score.nll, rel=0.03)


@pytest.mark.parametrize("wrapped", [False, True], ids=["task", "forgetting"])
def test_a_step_of_unequal_batches_has_the_gradient_of_their_union(target, tmp_path, wrapped):
    """Outputs of 1 to 15 tokens: a mean of the batches' means would weigh the tokens of short outputs more."""
    examples = Examples.join([Example([*range(10, 20), *range(20, 21 + 5 * i)], 10) for i in range(4)], [Example([5, 6, 7], 1)])
    gradients = []
    for batch, accumulate in ((4, 1), (1, 4)):
        options = TrainOptions(steps=1, batch=batch, accumulate=accumulate, seq_len=32, seed=1)
        folder = ResumeFolder.open(tmp_path / str(batch), {"kind": "distill"})
        task = make_task(target, DistillRecipe(hard_label_weight=0.5))
        loop = TrainingLoop(
            ForgettingTask(task, task) if wrapped else task,
            examples,
            options,
            folder,
            TrainingCallback(),
            lr=0.01,
            weight_decay=0.0,
        )
        loop.run(lambda: False)
        gradients.append({name: value for moment, name, value in loop.optimizer.tensors() if moment == "exp_avg"})
        gradients[-1]["loss"] = torch.tensor(loop.state.evaluations[0]["train_loss"])
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)
