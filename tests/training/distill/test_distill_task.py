"""The task's loss and score equal formulas over the logits of transformers, and training lowers them."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from hasten.training.corpus import Batch
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.distill.teacher import LiveTeacher
from hasten.training.smaller_config import smaller_config
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

IDS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(3))
IS_OUTPUT = torch.arange(40).expand(2, 40) >= torch.tensor([[11], [30]])


@pytest.fixture(scope="module")
def target(model) -> TargetModel:
    return TargetModel.load(model)


def student_of(target, *, layers=1, hidden=32, seed=5) -> TrainableModel:
    student = TrainableModel.new(smaller_config(target.config, layers=layers, hidden=hidden, remedy=""), seed)
    with torch.no_grad():  # initial weights are so small that all distributions are nearly uniform
        for parameter in student.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.2)
    return student


def logits_of(student: TrainableModel, ids=IDS):
    return (student.normed(student.hidden_states(ids)) @ student.lm_head_VE.T).view(*ids.shape, -1)


@pytest.fixture(scope="module")
def reference(model):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()(IDS).logits


def rows_of(values, is_output):
    """Return the rows that predict an output token, by a loop."""
    counted = [(b, s) for b in range(2) for s in range(39) if is_output is None or is_output[b, s + 1]]
    return torch.stack([values[b, s] for b, s in counted]), torch.stack([IDS[b, s + 1] for b, s in counted])


@pytest.mark.parametrize("is_output", [None, IS_OUTPUT], ids=["text", "examples"])
@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.25, 1.0), (0.25, 3.0), (1.0, 2.0)])
def test_the_loss_mixes_cross_entropy_and_divergence(target, reference, is_output, weight, temperature):
    student = student_of(target)
    recipe = DistillRecipe(loss="forward-kl", hard_label_weight=weight, temperature=temperature)
    loss = DistillTask(student, LiveTeacher(target), recipe).loss(Batch(IDS, 0, is_output))
    logits, labels = rows_of(logits_of(student), is_output)
    teacher, _ = rows_of(reference, is_output)
    kl = F.kl_div((logits / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean")
    expected = weight * F.cross_entropy(logits, labels) + (1 - weight) * temperature**2 * kl
    torch.testing.assert_close(loss, expected)
    parameters = list(student.decoder.parameters())
    actual, oracle = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    torch.testing.assert_close(actual, oracle, atol=1e-5, rtol=1e-4)


def test_supervised_fine_tuning_is_cross_entropy_without_a_teacher(target):
    student = student_of(target)
    task = DistillTask(student, None, DistillRecipe(loss="sft"))
    batch = Batch(IDS, 0, IS_OUTPUT)
    logits, labels = rows_of(logits_of(student), IS_OUTPUT)
    expected = F.cross_entropy(logits, labels).detach()
    torch.testing.assert_close(task.loss(batch).detach(), expected)
    score = task.evaluate(batch)
    assert (score.kl, score.num_agreed, score.num_positions) == (None, None, len(labels))
    assert score.mean_loss == pytest.approx(float(expected), rel=1e-5)


def layer_outputs(model, ids):
    """Return the output of every layer in transformers, [B, S, E]."""
    outputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[2])) for layer in model.model.layers]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("loss", ["sft", "forward-kl"])
def test_hidden_states_of_the_matched_layers_add_to_the_loss(target, model, tmp_path, loss):
    """A student of two layers learns the second and the third layer of its teacher, at the predicted positions."""
    student, batch = student_of(target, layers=2), Batch(IDS, 0, IS_OUTPUT)
    shape = {"teacher_layers": target.spec.num_layers, "teacher_hidden_size": target.spec.hidden_size, "seed": 4}
    plain, task = (
        DistillTask(student, LiveTeacher(target), DistillRecipe(loss=loss, hidden_weight=weight), **shape) for weight in (0, 0.3)
    )
    projections = [task.parameters()[f"hidden_projections.{layer}"] for layer in range(2)]
    assert set(task.parameters()) - set(plain.parameters()) == {"hidden_projections.0", "hidden_projections.1"}
    student.write(tmp_path)
    teacher, ours = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (model, tmp_path))
    expected, targets = float(plain.loss(batch).detach()), layer_outputs(teacher, IDS)[1:]
    for projection, states, target_states in zip(projections, layer_outputs(ours, IDS), targets, strict=True):
        (rows, _), (target_rows, _) = rows_of(states, IS_OUTPUT), rows_of(target_states, IS_OUTPUT)
        rows, target_rows = (found / (found**2).mean(-1, keepdim=True).sqrt() for found in (rows, target_rows))
        expected += 0.3 * float(((rows @ projection.detach().T - target_rows) ** 2).mean()) / 2
    assert float(task.loss(batch).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [{"loss": "sft"}, {"temperature": 4.0}, {"hard_label_weight": 0.25}], ids=str)
def test_the_score_is_at_temperature_1_and_weighs_the_text_as_the_loss_does(target, reference, options):
    """For sft the best parameters are those that predict the text, though the score also names the teacher's KL."""
    student = student_of(target)
    score = DistillTask(student, LiveTeacher(target), DistillRecipe(**options)).evaluate(Batch(IDS, 0, IS_OUTPUT))
    with torch.no_grad():
        logits, labels = rows_of(logits_of(student), IS_OUTPUT)
    teacher, _ = rows_of(reference, IS_OUTPUT)
    nll = float(F.cross_entropy(logits, labels))
    kl = float(F.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="batchmean"))
    weight = 1.0 if "loss" in options else options.get("hard_label_weight", 0.0)
    assert score.nll / score.num_positions == pytest.approx(nll, rel=1e-5)
    assert score.kl / score.num_positions == pytest.approx(kl, rel=1e-4)
    assert score.num_agreed == int((logits.argmax(-1) == teacher.argmax(-1)).sum())
    assert score.mean_loss == (score + score).mean_loss == pytest.approx(weight * nll + (1 - weight) * kl, rel=1e-4)


def test_a_student_equal_to_its_teacher_has_no_divergence(target, model):
    task = DistillTask(TrainableModel.load(model), LiveTeacher(target), DistillRecipe())
    batch = Batch(IDS, 0)
    score = task.evaluate(batch)
    assert abs(float(task.loss(batch).detach())) < 1e-6 and abs(score.kl) < 1e-4 and score.num_agreed == score.num_positions == 78


def test_a_batch_without_outputs_has_no_loss(target):
    task = DistillTask(student_of(target), LiveTeacher(target), DistillRecipe(hard_label_weight=0.5))
    batch = Batch(IDS, 0, torch.zeros_like(IS_OUTPUT))
    loss = task.loss(batch)
    loss.backward()
    score = task.evaluate(batch)
    assert float(loss.detach()) == 0 and (score.num_positions, score.nll, score.kl, score.num_agreed) == (0, 0.0, 0.0, 0)


def test_a_teacher_of_a_padded_vocabulary_teaches_the_common_tokens(target, reference):
    config = {**smaller_config(target.config, layers=1, hidden=32, remedy=""), "vocab_size": 99}
    student = TrainableModel.new(config, 5)
    loss = DistillTask(student, LiveTeacher(target), DistillRecipe()).loss(Batch(IDS, 0))
    logits, _ = rows_of(logits_of(student), None)
    teacher, _ = rows_of(reference[..., :99], None)
    torch.testing.assert_close(loss, F.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="batchmean"))


def test_the_checkpoint_loads_in_transformers_with_the_teachers_tokenizer(target, model, tmp_path):
    student = student_of(target)
    task = DistillTask(student, LiveTeacher(target), DistillRecipe(), side_files_of=model)
    task.save(tmp_path / "out", task.evaluate(Batch(IDS, 0)))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, logits_of(student), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == 32
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
