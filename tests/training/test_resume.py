"""A training that is cut off anywhere goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import CapacityError, CheckpointError, InvalidOption
from hasten.training import resume
from hasten.training.callback import Silent
from hasten.training.corpus import Batch, Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.loop import TrainingLoop
from hasten.training.options import TrainOptions
from hasten.training.resume import ResumeFolder, Saved

SETTINGS = {"kind": "toy", "lr": 0.01}


class Toy:
    """A table of which token follows which, with noise of the step in its loss: cheap, and never at rest."""

    def __init__(self, diverges_at: int | None = None) -> None:
        self.table = nn.Parameter(torch.zeros(32, 32))
        self.bias = nn.Parameter(torch.zeros(32))
        self.calls, self.diverges_at = 0, diverges_at

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"table": self.table, "bias": self.bias}

    def loss(self, batch: Batch) -> Tensor:
        self.calls += 1
        noise = torch.randn(32, generator=batch.generator())
        logits = self.table[batch.ids_BW[:, :-1].flatten() % 32] + self.bias + 0.1 * noise
        loss = nn.functional.cross_entropy(logits, batch.ids_BW[:, 1:].flatten() % 32)
        return loss * (math.nan if self.calls == self.diverges_at else 1.0)

    def evaluate(self, batch: Batch) -> DraftScore:
        count = batch.ids_BW.numel()
        return DraftScore(
            loss=float(self.loss(batch)) * count, num_positions=count, right=(count,), seen=(count,), ranks=((count,),)
        )

    def save(self, folder: Path, score: DraftScore) -> None:
        raise AssertionError("the job saves, not the loop")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    generator = torch.Generator().manual_seed(5)
    steps = torch.randint(1, 4, (4000,), generator=generator)
    return Corpus.split([(steps.cumsum(0) % 32).tolist()], 32, 0.1, None)


OPTIONS = TrainOptions(steps=60, batch=2, seq_len=32, seed=9, save_every=0)


def fit(corpus: Corpus, out: Path, task: Toy | None = None, options: TrainOptions = OPTIONS) -> TrainingLoop:
    return TrainingLoop(task or Toy(), corpus, options, ResumeFolder.open(out, SETTINGS), Silent(), lr=0.01, weight_decay=0.01)


def after(calls: int) -> Callable[[], bool]:
    """Asks to stop after so many steps."""
    left = iter([False] * calls)
    return lambda: next(left, True)


def never() -> bool:
    return False


def result(done: TrainingLoop) -> tuple[object, list[list[float]]]:
    return done.state.evaluations, [parameter.tolist() for parameter in done.parameters.values()]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A training that was never cut off."""
    done = fit(corpus, tmp_path_factory.mktemp("whole"))
    assert done.run(never) is not None
    return result(done)


@pytest.mark.parametrize("cuts", [[1], [3, 1, 7], [59], [60], [5] * 11], ids=str)
def test_a_run_that_is_cut_off_gives_the_same_curve_bit_for_bit(corpus, tmp_path, whole, cuts):
    for cut in cuts:
        assert fit(corpus, tmp_path).run(after(cut)) is None or cut == 60
    done = fit(corpus, tmp_path)
    assert done.run(never) is not None
    assert result(done) == whole


@pytest.mark.parametrize("part", ["weight.table", "exp_avg.bias", "exp_avg_sq.table"])
def test_a_state_without_one_of_its_parts_would_be_noticed(corpus, tmp_path, whole, part):
    """Negative control: the comparison sees weights or moments that were not carried over."""
    assert fit(corpus, tmp_path).run(after(10)) is None
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    saved = folder.load()
    folder.save(10, Saved({**saved.tensors, part: torch.zeros_like(saved.tensors[part])}, saved.values))
    done = fit(corpus, tmp_path)
    done.run(never)
    assert result(done) != whole


def test_a_death_between_any_two_writes_leaves_a_whole_state(tmp_path, monkeypatch):
    """The process dies before its n-th change of the folder, for every n."""
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, Saved({"a": torch.ones(3)}, {"step": 1}))
    found = []
    for survived in range(5):
        left = survived

        def dies(real):
            def change(*arguments):
                nonlocal left
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                return real(*arguments)

            return change

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "write_bytes"):
                patch.setattr(Path, name, dies(getattr(Path, name)))
            with contextlib.suppress(KeyboardInterrupt):
                folder.save(2 + survived, Saved({"a": torch.full((3,), 2.0 + survived)}, {"step": 2 + survived}))
        saved = ResumeFolder.open(tmp_path, SETTINGS).load()
        assert saved.tensors["a"].tolist() == [saved.values["step"]] * 3
        found.append(saved.values["step"])
    assert found == [1, 1, 1, 5, 6]


def test_a_death_inside_a_write_leaves_a_whole_state(tmp_path, monkeypatch):
    """Also where the same step is saved again, over a file that the state names."""
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, Saved({"a": torch.ones(3)}, {"step": 1}))

    def half(tensors, file):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(resume, "save_file", half)
    for step in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            folder.save(step, Saved({"a": torch.zeros(3)}, {"step": step}))
        assert ResumeFolder.open(tmp_path, SETTINGS).load().tensors["a"].tolist() == [1.0] * 3


def test_a_death_while_the_state_is_removed_leaves_it_whole_or_not_at_all(tmp_path, monkeypatch):
    """The process dies before its n-th change of the folder, for every n: then the same command is given again."""
    whole, finished = 0, 0
    for survived in range(10):
        out = tmp_path / str(survived)
        folder = ResumeFolder.open(out, SETTINGS)
        folder.write("corpus", {"train": torch.ones(5)})
        folder.save(1, Saved({"a": torch.ones(3)}, {"step": 1}))
        (out / "model.safetensors").write_bytes(b"the result")
        left = survived

        def dies(real):
            def change(*arguments, **places):
                nonlocal left
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                return real(*arguments, **places)

            return change

        with monkeypatch.context() as patch:
            for name in ("unlink", "rmdir", "rename", "replace"):
                patch.setattr(os, name, dies(getattr(os, name)))
            with contextlib.suppress(KeyboardInterrupt):
                folder.remove()
        if (out / ".resume").exists():
            again = ResumeFolder.open(out, SETTINGS)
            saved = again.load()
            assert saved is not None and saved.tensors["a"].tolist() == [1.0] * 3 and saved.values == {"step": 1}
            assert again.read("corpus") is not None
            whole += 1
        else:
            with pytest.raises(InvalidOption, match="holds something already"):
                ResumeFolder.open(out, SETTINGS)
            assert [entry.name for entry in out.iterdir()] == ["model.safetensors"]
            finished += 1
    assert (whole, finished) == (1, 9)


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: the system refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("large", ["tensors", "values"])
def test_a_full_disk_is_told_and_the_state_before_it_survives(tmp_path, large):
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, Saved({"a": torch.ones(3)}, {"step": 1}))
    tensors = {"a": torch.zeros(50_000 if large == "tensors" else 3)}
    values = {"step": 2, "losses": [0.25] * (50_000 if large == "values" else 1)}
    with small_disk(100_000), pytest.raises(CapacityError) as error:
        folder.save(2, Saved(tensors, values))
    message = str(error.value)
    assert f"{tmp_path / '.resume'} cannot be written" in message and "File too large" in message
    assert "Free space" in message and "the same command then goes on" in message
    assert not list(folder.folder.glob("*.partial")), "half a state would fill the disk further"
    found = ResumeFolder.open(tmp_path, SETTINGS).load()
    assert found.values == {"step": 1} and found.tensors["a"].tolist() == [1.0] * 3
    folder.save(2, Saved(tensors, values))
    assert ResumeFolder.open(tmp_path, SETTINGS).load().values["step"] == 2


def test_training_stops_when_held_out_text_is_read_no_better(corpus, tmp_path):
    options = TrainOptions(steps=400, batch=2, seq_len=32, seed=9, patience=2)
    task = Toy()
    task.evaluate = lambda batch: DraftScore(
        loss=[5.0, 4.0, 3.0, 3.5, 3.2, 9.0][min(5, task.calls // 20 - 1)], num_positions=1, right=(), seen=(), ranks=()
    )
    done = fit(corpus, tmp_path, task, options)
    kept = {}
    watched = done.callback
    watched.evaluated = lambda step, *_: kept.update({step: task.table.detach().clone()})
    done.run(never)
    assert [found["step"] for found in done.state.evaluations] == [20, 40, 60, 80, 100]
    assert torch.equal(task.table, kept[60]) and not torch.equal(kept[60], kept[100])


def test_what_is_read_while_the_rate_rises_ends_no_training(corpus, tmp_path):
    """Weights that were trained before are best at the beginning, and get worse before they get better."""
    losses = [1.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.7, 1.7]
    task = Toy()
    task.evaluate = lambda batch: DraftScore(
        loss=losses[min(7, task.calls // 20 - 1)], num_positions=1, right=(), seen=(), ranks=()
    )
    done = fit(corpus, tmp_path, task, TrainOptions(steps=400, batch=2, seq_len=32, seed=9, patience=2))
    done.run(never)
    assert [found["loss"] for found in done.state.evaluations] == losses
    assert done.state.best == 0, "the best of all is kept"


def test_a_loss_that_is_no_number_ends_the_training(corpus, tmp_path):
    with pytest.raises(InvalidOption, match=r"no number any more at step 3.*--lr"):
        fit(corpus, tmp_path, Toy(diverges_at=3)).run(never)


def test_a_time_becomes_a_number_of_steps_once(corpus, tmp_path):
    options = TrainOptions(minutes=0.02, batch=2, seq_len=32, seed=9, save_every=0)
    begun = fit(corpus, tmp_path, options=options)
    total = begun.state.total
    assert total >= 20 and begun.state.step == 0
    again = fit(corpus, tmp_path, options=options)
    assert again.state.total == total
    fresh = Toy()
    assert torch.equal(again.parameters["table"], fresh.table)


def test_other_settings_are_refused_and_named(tmp_path):
    ResumeFolder.open(tmp_path, SETTINGS).save(1, Saved({}, {}))
    with pytest.raises(InvalidOption) as error:
        ResumeFolder.open(tmp_path, {"kind": "toy", "lr": 0.02, "heads": 3})
    message = str(error.value)
    assert "lr was 0.01 and is 0.02" in message and "heads was None and is 3" in message and "kind" not in message
    assert str(tmp_path / ".resume") in message


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidOption, match="holds something already"):
        ResumeFolder.open(tmp_path, SETTINGS)
    with pytest.raises(InvalidOption, match="holds something already"):
        ResumeFolder.open(tmp_path / "thesis.txt", SETTINGS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", ["state.json", "step-00000001.safetensors", "settings.json"])
def test_a_damaged_state_is_told_and_not_begun_anew(tmp_path, damage):
    folder = ResumeFolder.open(tmp_path, SETTINGS)
    folder.save(1, Saved({"a": torch.ones(30)}, {"step": 1}))
    file = folder.folder / damage
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        ResumeFolder.open(tmp_path, SETTINGS).load()
    if damage.startswith("step"):
        file.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            ResumeFolder.open(tmp_path, SETTINGS).load()
