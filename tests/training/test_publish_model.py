"""No reader takes a checkpoint for a model before all of it is in place, wherever publishing is cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CapacityError, ModelNotFound
from hasten.training.publish_model import publish_model
from hasten.training.resume import ResumeFolder, SavedState
from hasten.training.trainable_model import TrainableModel


class Killed(BaseException):
    """Stands for a death of the process: no handler of errors sees it."""


def open_resume(out: Path) -> ResumeFolder:
    resume = ResumeFolder.open(out, {"kind": "test"})
    resume.save(1, SavedState({}, {"step": 1}))
    return resume


@pytest.mark.parametrize("moved", range(6))
def test_a_killed_publication_leaves_no_model_and_is_repeated(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """The process dies after this many files have been moved."""
    student, out = TrainableModel.load(model), tmp_path / "out"
    resume, moves, replace = open_resume(out), [0], Path.replace

    def die(self: Path, target: Path) -> Path:
        if moves[0] == moved:
            raise Killed
        moves[0] += 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            publish_model(resume, lambda folder: student.write(folder, model), {"loss": 1.0})
    num_files = sum(file.is_file() for file in out.rglob("*") if ".resume" not in file.parts)
    assert num_files == moved
    if not (out / "config.json").exists():
        with pytest.raises(ModelNotFound):
            Checkpoint.open(out)
    else:  # all others came before it
        Checkpoint.open(out)
        assert not [file for file in (out / ".resume" / "result").rglob("*") if file.is_file()]
    assert ResumeFolder.open(out, {"kind": "test"}).load() is not None
    publish_model(open_resume(out), lambda folder: student.write(folder, model), {"loss": 1.0})
    assert json.loads((out / "training.json").read_text()) == {"loss": 1.0}
    assert TrainableModel.load(out).spec == student.spec and not (out / ".resume").exists()


def test_weights_that_do_not_fit_the_disk_leave_the_state(tmp_path: Path) -> None:
    resume = open_resume(tmp_path / "out")

    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with pytest.raises(CapacityError, match="No space left"):
        publish_model(resume, write, {})
    assert not (tmp_path / "out" / "config.json").exists() and resume.load() is not None
