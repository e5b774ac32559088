"""``TrainingRun``: one training after its data is read, up to the finished checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.training.base import CalibratedTask, TrainingTask
from hasten.training.build_task import build_task
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import BatchSource
from hasten.training.draft_score import DraftScore
from hasten.training.loop import TrainingLoop, TrainingState
from hasten.training.options import TrainOptions
from hasten.training.recipes import Recipe
from hasten.training.resume import ResumeFolder, write_errors
from hasten.training.set_threads import set_threads
from hasten.training.target_model import TargetModel, trainable_spec

REPORT = "training.json"
_FINGERPRINT_BYTES = 1 << 20  # read at both ends of a weight file
NOT_IN_SETTINGS = ("save_every", "threads")  # options that do not change the result


@dataclass(frozen=True, slots=True)
class TrainingResult:
    score: DraftScore  # of the best parameters, on validation text
    state: TrainingState


@dataclass(frozen=True, slots=True)
class TrainingRun:
    model: str  # as the caller names it
    folder: Path  # of the model
    out: Path
    recipe: Recipe
    options: TrainOptions
    settings: dict[str, Any]  # all that the result depends on
    resume: ResumeFolder
    callback: TrainingCallback
    should_stop: Callable[[], bool]

    @classmethod
    def open(
        cls,
        model: str,
        out: Path,
        recipe: Recipe,
        options: TrainOptions,
        data_digest: Callable[[], str],
        callback: TrainingCallback | None,
        should_stop: Callable[[], bool],
    ) -> TrainingRun:
        """Check the model, the data's digest and the output folder, and write nothing.

        ``callback`` None: silent. Raises ``HastenError``.
        """
        set_threads(options.threads)
        folder = resolve(model, quiet=callback is None)
        trainable_spec(folder)  # before its files are read
        settings = _settings(folder, data_digest(), recipe, options)
        resume = ResumeFolder.open(out, settings)
        return cls(model, folder, out, recipe, options, settings, resume, callback or TrainingCallback(), should_stop)

    def complete(self, corpus: BatchSource) -> TrainingResult | None:
        """Train on ``corpus`` and write the checkpoint and ``training.json``.

        None if ``should_stop`` returned True; the state is saved then.
        """
        self.callback.on_log(corpus.summary)
        task = build_task(self.recipe, TargetModel.load(self.folder), corpus, self.options.seed)
        lr, weight_decay = self.settings["lr"], self.recipe.weight_decay
        loop = TrainingLoop(task, corpus, self.options, self.resume, self.callback, lr=lr, weight_decay=weight_decay)
        score = loop.run(self.should_stop)
        if score is None:
            return None
        calibration = self._calibrate(task, corpus)
        if calibration is None:
            return None
        counts = {"num_sequences": loop.state.num_sequences, "num_tokens": loop.state.num_tokens}
        scores = {"held_out_score": score.as_dict(), **calibration, **counts, "evaluations": loop.state.evaluations}
        with write_errors(self.out):
            task.save(self.out, score)
            report = json.dumps({"model": self.model, **self.settings, **scores}, indent=1)
            (self.out / REPORT).write_text(report + "\n", encoding="utf-8")
        self.resume.remove()
        return TrainingResult(score, loop.state)

    def _calibrate(self, task: TrainingTask[DraftScore], corpus: BatchSource) -> Mapping[str, Any] | None:
        if not isinstance(task, CalibratedTask):
            return {}
        return task.calibrate(corpus, self.options, self.callback, self.should_stop)


def _settings(folder: Path, data_sha256: str, recipe: Recipe, options: TrainOptions) -> dict[str, Any]:
    """Return everything that the result depends on, as plain data. A run resumes only with equal settings."""
    settings = {"kind": recipe.name, **dataclasses.asdict(recipe), **dataclasses.asdict(options)}
    settings |= {"lr": options.lr or recipe.learning_rate, "data_sha256": data_sha256, "model_sha256": model_fingerprint(folder)}
    if settings.get("init_from") is not None:
        settings["init_from_sha256"] = _sha256(resolve(settings["init_from"], quiet=True))
    return {name: value for name, value in settings.items() if name not in NOT_IN_SETTINGS}


def model_fingerprint(folder: Path) -> str:
    """Return a hash of the configuration and of the size and both ends of every weight file."""
    checkpoint = Checkpoint.open(folder)
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for file in sorted({entry.file for entry in checkpoint.tensors.values()}):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name} {size}".encode() + stream.read(_FINGERPRINT_BYTES))
            stream.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def _sha256(folder: Path) -> str:
    """Return a hash of all files of a checkpoint, which tells heads of equal size and configuration apart."""
    digest = hashlib.sha256()
    files = [folder] if is_gguf(folder) else sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()
