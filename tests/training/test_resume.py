"""A training that is interrupted anywhere continues as if it had not been."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.small_disk import small_disk
from tests.training.conftest import stop_after
from torch import Tensor, nn

from hasten.core.errors import CapacityError, CheckpointError, InvalidOption
from hasten.training import resume
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch, Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.loop import TrainingLoop
from hasten.training.options import TrainOptions
from hasten.training.resume import ResumeFolder, SavedState

SETTINGS = {"kind": "toy", "lr": 0.01}


class ToyTask:
    """A bigram table whose loss has the noise of the step: cheap, and never at rest."""

    def __init__(self, diverges_at: int | None = None, noise: float = 0.1) -> None:
        self.table = nn.Parameter(torch.zeros(32, 32))
        self.bias = nn.Parameter(torch.zeros(32))
        self.calls, self.diverges_at, self.noise = 0, diverges_at, noise

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"table": self.table, "bias": self.bias}

    def loss(self, batch: Batch) -> Tensor:
        self.calls += 1
        noise = torch.randn(32, generator=batch.generator())
        logits = self.table[batch.ids_BS[:, :-1].flatten() % 32] + self.bias + self.noise * noise
        loss = nn.functional.cross_entropy(logits, batch.ids_BS[:, 1:].flatten() % 32)
        return loss * (math.nan if self.calls == self.diverges_at else 1.0)

    def evaluate(self, batch: Batch) -> DraftScore:
        count = batch.ids_BS.numel()
        return DraftScore(
            loss=float(self.loss(batch)) * count, num_positions=count, accepted=(count,), reached=(count,), rank_hits=((count,),)
        )

    def save(self, folder: Path, score: DraftScore) -> None:
        raise AssertionError("the loop must not save")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    generator = torch.Generator().manual_seed(5)
    increments = torch.randint(1, 4, (4000,), generator=generator)
    return Corpus.split([(increments.cumsum(0) % 32).tolist()], 32, 0.1, None)


OPTIONS = TrainOptions(steps=60, batch=2, seq_len=32, seed=9, save_every=0)


def make_loop(corpus: Corpus, out: Path, task: ToyTask | None = None, options: TrainOptions = OPTIONS) -> TrainingLoop:
    folder = ResumeFolder.open(out, SETTINGS)
    return TrainingLoop(task or ToyTask(), corpus, options, folder, TrainingCallback(), lr=0.01, weight_decay=0.01)


def never() -> bool:
    return False


def loss_score(loss: float) -> DraftScore:
    return DraftScore(loss=loss, num_positions=1, accepted=(), reached=(), rank_hits=())


def result(loop: TrainingLoop) -> tuple[object, list[list[float]]]:
    return loop.state.evaluations, [parameter.tolist() for parameter in loop.parameters.values()]


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """The result of an uninterrupted training."""
    loop = make_loop(corpus, tmp_path_factory.mktemp("uninterrupted"))
    assert loop.run(never) is not None
    return result(loop)


@pytest.mark.parametrize("stops", [[1], [3, 1, 7], [59], [60], [5] * 11], ids=str)
def test_an_interrupted_run_gives_the_same_result_bit_for_bit(corpus, tmp_path, uninterrupted, stops):
    for steps in stops:
        assert make_loop(corpus, tmp_path).run(stop_after(steps)) is None or steps == 60
    loop = make_loop(corpus, tmp_path)
    assert loop.run(never) is not None
    assert result(loop) == uninterrupted


def test_the_moments_of_muon_are_resumed_and_several_batches_make_a_step(corpus, tmp_path):
    options = dataclasses.replace(OPTIONS, steps=12, optimizer="muon", accumulate=3)
    expected = make_loop(corpus, tmp_path / "complete", options=options)
    assert expected.run(never) is not None
    assert make_loop(corpus, tmp_path / "broken", options=options).run(stop_after(5)) is None
    loop = make_loop(corpus, tmp_path / "broken", options=options)
    assert {moment for moment, _, _ in loop.optimizer.tensors()} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    assert loop.run(never) is not None
    assert result(loop) == result(expected)


def test_a_step_of_several_batches_has_the_gradient_of_their_union(corpus, tmp_path):
    gradients = []
    for batch, accumulate in ((4, 1), (2, 2)):
        options = dataclasses.replace(OPTIONS, steps=1, batch=batch, accumulate=accumulate)
        loop = make_loop(corpus, tmp_path / str(batch), ToyTask(noise=0.0), options)
        loop.run(never)
        gradients.append(next(value for moment, name, value in loop.optimizer.tensors() if (moment, name) == ("exp_avg", "table")))
    assert torch.allclose(*gradients, atol=1e-8) and bool(gradients[0].any())


@pytest.mark.parametrize("name", ["weight.table", "exp_avg/bias", "exp_avg_sq/table"])
def test_a_tensor_missing_from_the_state_would_be_detected(corpus, tmp_path, uninterrupted, name):
    """Negative control: the comparison sees parameters or moments that were not restored."""
    assert make_loop(corpus, tmp_path).run(stop_after(10)) is None
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    saved = folder.load()
    folder.save(10, SavedState({**saved.tensors, name: torch.zeros_like(saved.tensors[name])}, saved.values))
    loop = make_loop(corpus, tmp_path)
    loop.run(never)
    assert result(loop) != uninterrupted


class DyingProcess:
    """Patches functions to raise ``KeyboardInterrupt`` after ``survived`` calls of any of them."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, names: tuple[str, ...], survived: int) -> None:
        self.remaining = survived
        for name in names:
            patch.setattr(owner, name, self.dies(getattr(owner, name)))

    def dies(self, function):
        def call(*arguments, **options):
            if self.remaining == 0:
                raise KeyboardInterrupt
            self.remaining -= 1
            return function(*arguments, **options)

        return call


def test_a_death_between_any_two_writes_leaves_a_complete_state(tmp_path, monkeypatch):
    """The process dies before its n-th change of the folder, for every n."""
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, SavedState({"a": torch.ones(3)}, {"step": 1}))
    steps = []
    for survived in range(5):
        with monkeypatch.context() as patch:
            DyingProcess(patch, Path, ("replace", "unlink", "write_bytes"), survived)
            with contextlib.suppress(KeyboardInterrupt):
                folder.save(2 + survived, SavedState({"a": torch.full((3,), 2.0 + survived)}, {"step": 2 + survived}))
        saved = ResumeFolder.open(tmp_path, SETTINGS).load()
        assert saved.tensors["a"].tolist() == [saved.values["step"]] * 3
        steps.append(saved.values["step"])
    assert steps == [1, 1, 1, 5, 6]


def test_a_death_inside_a_write_leaves_a_complete_state(tmp_path, monkeypatch):
    """Also if the same step is saved again, over a file that the state names."""
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, SavedState({"a": torch.ones(3)}, {"step": 1}))

    def write_half(tensors, file):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(resume, "write_tensors", write_half)
    for step in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            folder.save(step, SavedState({"a": torch.zeros(3)}, {"step": step}))
        assert ResumeFolder.open(tmp_path, SETTINGS).load().tensors["a"].tolist() == [1.0] * 3


def test_a_death_during_removal_leaves_the_state_complete_or_absent(tmp_path, monkeypatch):
    """The process dies before its n-th change of the folder, for every n."""
    complete, absent = 0, 0
    for survived in range(10):
        out = tmp_path / str(survived)
        folder = ResumeFolder.open(out, SETTINGS)
        folder.write("corpus", {"train": torch.ones(5)})
        folder.save(1, SavedState({"a": torch.ones(3)}, {"step": 1}))
        (out / "model.safetensors").write_bytes(b"the result")
        with monkeypatch.context() as patch:
            DyingProcess(patch, os, ("unlink", "rmdir", "rename", "replace"), survived)
            with contextlib.suppress(KeyboardInterrupt):
                folder.remove()
        if (out / ".resume").exists():
            again = ResumeFolder.open(out, SETTINGS)
            saved = again.load()
            assert saved is not None and saved.tensors["a"].tolist() == [1.0] * 3 and saved.values == {"step": 1}
            assert again.read("corpus") is not None
            complete += 1
        else:
            with pytest.raises(InvalidOption, match="not an empty folder"):
                ResumeFolder.open(out, SETTINGS)
            assert [entry.name for entry in out.iterdir()] == ["model.safetensors"]
            absent += 1
    assert (complete, absent) == (1, 9)


@pytest.mark.parametrize("large", ["tensors", "values"])
def test_a_full_disk_is_reported_and_the_last_state_survives(tmp_path, large):
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, SavedState({"a": torch.ones(3)}, {"step": 1}))
    tensors = {"a": torch.zeros(50_000 if large == "tensors" else 3)}
    values = {"step": 2, "losses": [0.25] * (50_000 if large == "values" else 1)}
    with small_disk(100_000), pytest.raises(CapacityError) as error:
        folder.save(2, SavedState(tensors, values))
    message = str(error.value)
    assert f"{tmp_path / '.resume'} cannot be written" in message and "File too large" in message
    assert "Free space" in message and "the same command then continues" in message
    assert not list(folder.folder.glob("*.partial")), "a partial file would fill the disk further"
    saved = ResumeFolder.open(tmp_path, SETTINGS).load()
    assert saved.values == {"step": 1} and saved.tensors["a"].tolist() == [1.0] * 3
    folder.save(2, SavedState(tensors, values))
    assert ResumeFolder.open(tmp_path, SETTINGS).load().values["step"] == 2


def test_training_stops_when_the_validation_loss_does_not_improve(corpus, tmp_path):
    options = TrainOptions(steps=400, batch=2, seq_len=32, seed=9, patience=2)
    task, losses = ToyTask(), [5.0, 4.0, 3.0, 3.5, 3.2, 9.0]
    task.evaluate = lambda batch: loss_score(losses[min(5, task.calls // 20 - 1)])
    loop = make_loop(corpus, tmp_path, task, options)
    tables = {}
    loop.callback.on_evaluate = lambda step, *_: tables.update({step: task.table.detach().clone()})
    loop.run(never)
    assert [entry["step"] for entry in loop.state.evaluations] == [20, 40, 60, 80, 100]
    assert torch.equal(task.table, tables[60]) and not torch.equal(tables[60], tables[100])


def test_evaluations_during_warm_up_stop_no_training(corpus, tmp_path):
    """Pretrained weights are best at the beginning, and get worse before they improve."""
    losses = [1.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.7, 1.7]
    task = ToyTask()
    task.evaluate = lambda batch: loss_score(losses[min(7, task.calls // 20 - 1)])
    loop = make_loop(corpus, tmp_path, task, TrainOptions(steps=400, batch=2, seq_len=32, seed=9, patience=2))
    loop.run(never)
    assert [entry["loss"] for entry in loop.state.evaluations] == losses
    assert loop.state.best == 0, "the best weights of all evaluations are kept"


def test_a_loss_that_is_not_finite_ends_the_training(corpus, tmp_path):
    with pytest.raises(InvalidOption, match=r"not finite at step 3.*--lr"):
        make_loop(corpus, tmp_path, ToyTask(diverges_at=3)).run(never)


def test_minutes_become_a_number_of_steps_once(corpus, tmp_path):
    options = TrainOptions(minutes=0.02, batch=2, seq_len=32, seed=9, save_every=0)
    first = make_loop(corpus, tmp_path, options=options)
    total_steps = first.state.total_steps
    assert total_steps >= 20 and first.state.step == 0
    again = make_loop(corpus, tmp_path, options=options)
    assert again.state.total_steps == total_steps
    assert torch.equal(again.parameters["table"], ToyTask().table)


def test_other_settings_are_refused_and_named(tmp_path):
    ResumeFolder.open(tmp_path, SETTINGS).save(1, SavedState({}, {}))
    with pytest.raises(InvalidOption) as error:
        ResumeFolder.open(tmp_path, {"kind": "toy", "lr": 0.02, "heads": 3})
    message = str(error.value)
    assert "lr was 0.01 and is 0.02" in message and "heads was None and is 3" in message and "kind" not in message
    assert str(tmp_path / ".resume") in message


def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidOption, match="not an empty folder"):
        ResumeFolder.open(tmp_path, SETTINGS)
    with pytest.raises(InvalidOption, match="not an empty folder"):
        ResumeFolder.open(tmp_path / "thesis.txt", SETTINGS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damaged", ["state.json", "step-00000001.safetensors", "settings.json"])
def test_a_damaged_state_is_reported_and_not_replaced(tmp_path, damaged):
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, SavedState({"a": torch.ones(30)}, {"step": 1}))
    file = folder.folder / damaged
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        ResumeFolder.open(tmp_path, SETTINGS).load()
    if damaged.startswith("step"):
        file.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            ResumeFolder.open(tmp_path, SETTINGS).load()


@pytest.mark.parametrize(
    "change", [{"tensors": None}, {"step": "1"}, {"total_steps": -1}, {"num_tokens": -1}, {"other": 1}, {"deep": 1}]
)
def test_a_state_with_other_values_is_reported(tmp_path, corpus, change):
    make_loop(corpus, tmp_path)._save()
    file = tmp_path / ".resume" / "state.json"
    values = {**json.loads(file.read_text()), **change}
    text = json.dumps({key: value for key, value in values.items() if value is not None})
    file.write_text("[" * 100_000 if "deep" in change else text)
    with pytest.raises(CheckpointError, match="damaged"):
        make_loop(corpus, tmp_path)
