"""``distill``: from a teacher, a student and a text to a trained checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hasten.compress.distill.card import build_card
from hasten.compress.distill.curves import write_curves
from hasten.compress.distill.distill_run import DistillRun, Texts
from hasten.compress.distill.distilled_model import DistilledModel
from hasten.compress.distill.forgetting import ForgettingScore, ForgettingTask, OutsideText
from hasten.compress.distill.replay import DEFAULT_SHARE
from hasten.compress.distill.student import StudentSource
from hasten.compress.distill.training_data import TrainingData, prompts_of, read_data
from hasten.compress.model_card import write_model_card
from hasten.compress.prune.shape import num_parameters
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import BatchSource
from hasten.training.device import move_decoder
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import SFT, DistillRecipe
from hasten.training.distill.teacher import LiveTeacher, Teacher
from hasten.training.loop import FINAL_EVALUATION_FACTOR, TrainingLoop, TrainingState
from hasten.training.mixed_source import MixedSource
from hasten.training.options import TrainOptions
from hasten.training.precision import autocast
from hasten.training.resume import write_errors
from hasten.training.rollouts import Rollouts
from hasten.training.schedule import num_evaluation_sequences
from hasten.training.set_threads import set_threads
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

REPORT = "training.json"
REFRESH_EVERY = 16  # batches that a student generates with the same weights


def distill(
    teacher: str,
    student: StudentSource,
    data: Path,
    out: Path,
    recipe: DistillRecipe | None = None,
    options: TrainOptions | None = None,
    *,
    replay: Path | None = None,
    replay_share: float = DEFAULT_SHARE,
    outside: Path | None = None,
    cache: Path | None = None,
    device: str = "auto",
    callback: TrainingCallback | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> DistilledModel | None:
    """Train a student to be like its teacher on a text, and write it to the new folder ``out``.

    ``out`` appears when it is complete. ``data`` is a file of texts, or of examples with "input" and "output", of which the outputs
    count. ``replay`` is text that a share of the batches repeats. ``outside`` is text on which forgetting is measured; None: the
    held-out text that ships with hasten. ``cache`` is a folder with the teacher's outputs for ``data`` (``cache_teacher``), in
    place of the teacher itself; divergences from it are measured inside the set only. ``device`` is one of ``DEVICES``.

    The same call resumes a run that was stopped or killed, and gives the same result, bit for bit, with the same number of threads.
    None if ``should_stop``, asked before each step, returned True. Raises ``HastenError``; ``out`` does not exist then.
    """
    started = time.monotonic()
    options = options or TrainOptions()
    set_threads(options.threads)
    run = DistillRun.open(
        teacher,
        student,
        out,
        texts=Texts(data=data, replay=replay, replay_share=replay_share, outside=outside, cache=cache),
        recipe=recipe or DistillRecipe(),
        options=options,
        device=device,
        callback=callback,
        should_stop=should_stop,
    )
    texts = read_data(run)
    if texts is None:
        return None
    trained = _Training.begin(run, texts).complete()
    return None if trained is None else _write(run, texts, trained, started)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """The result of the loop, before it is written."""

    task: ForgettingTask
    state: TrainingState
    score: ForgettingScore
    teacher_score: ForgettingScore | None
    before: ForgettingScore | None


@dataclass(frozen=True, slots=True)
class _Training:
    """Models and data of a run."""

    run: DistillRun
    teacher: TargetModel | None  # None: its outputs are cached, or it has another vocabulary
    student: TrainableModel
    source: BatchSource

    @classmethod
    def begin(cls, run: DistillRun, texts: TrainingData) -> _Training:
        runs = run.vocabulary.is_shared and run.cached is None
        teacher = TargetModel.load(run.folder) if runs or run.plan.layers else None
        student = run.plan.build(teacher, run.options.seed)
        teacher = teacher if runs else None
        for decoder in [student.decoder, *([] if teacher is None else [teacher.decoder])]:
            move_decoder(decoder, run.device)
        _say_sizes(run)
        return cls(run, teacher, student, _mix(run, texts, student))

    def complete(self) -> _Trained | None:
        """Train up to the lowest validation loss. None if ``should_stop`` returned True."""
        run = self.run
        run.callback.on_log(self.source.summary)
        task = self._task(self.student)
        lr, weight_decay = run.settings["lr"], run.recipe.weight_decay
        loop = TrainingLoop(task, self.source, run.options, run.work.resume, run.callback, lr=lr, weight_decay=weight_decay)
        limit = FINAL_EVALUATION_FACTOR * num_evaluation_sequences(loop.state.total_steps, run.options.batch)
        before = self._score_before(limit)
        score = loop.run(run.should_stop)
        if score is None:
            return None
        teacher_score = None if self.teacher is None else self._evaluate(_text_task(self.teacher), limit)
        return _Trained(task=task, state=loop.state, score=score, teacher_score=teacher_score, before=before)

    def _task(self, student: TrainableModel) -> ForgettingTask:
        run, teacher = self.run, self.teacher
        live: Teacher | None = run.cached if teacher is None else LiveTeacher(teacher)
        task = DistillTask(
            student,
            live,
            run.recipe,
            teacher_layers=run.spec.num_layers,
            teacher_hidden_size=run.spec.hidden_size,
            side_files_of=run.vocabulary.folder,
            seed=run.options.seed,
        )
        return ForgettingTask(task, task if run.cached is None else DistillTask(student, None, DistillRecipe(loss=SFT)))

    def _score_before(self, limit: int) -> ForgettingScore | None:
        """Score the initial weights of a student that was trained before, and may forget."""
        if not self.run.plan.is_trained:
            return None
        initial = self.run.plan.build(self.teacher, self.run.options.seed)  # a resumed run has other weights by now
        move_decoder(initial.decoder, self.run.device)
        score = self._evaluate(self._task(initial), limit)
        self.run.callback.on_log(f"before training: validation {score.mean_loss:.3f}, {score.describe()}")
        return score

    @torch.no_grad()
    def _evaluate(self, task: ForgettingTask, limit: int) -> ForgettingScore:
        options = self.run.options
        batches = self.source.validation_batches(options.batch, options.seq_len, limit)
        with autocast(options.precision, self.run.device):
            return functools.reduce(operator.add, map(task.evaluate, batches))


def _text_task(teacher: TargetModel) -> ForgettingTask:
    """Return a task that scores the teacher itself on the text."""
    model = TrainableModel(teacher.decoder, teacher.ops, teacher.config, teacher.dtype)
    task = DistillTask(model, None, DistillRecipe(loss=SFT))
    return ForgettingTask(task, task)


def _mix(run: DistillRun, texts: TrainingData, student: TrainableModel) -> BatchSource:
    """Return the source of all batches.

    They are of the set, of what the student answers, of replayed text, and of text outside the set.
    """
    source: BatchSource = texts.inside
    if run.recipe.on_policy:
        prompts, max_new_tokens = prompts_of(texts.inside, run.options.seq_len)
        answers = Rollouts(
            student,
            prompts,
            run.work.resume,
            side_files_of=run.vocabulary.folder,
            max_new_tokens=max_new_tokens,
            refresh_every=REFRESH_EVERY,
            temperature=1.0,
            seed=run.options.seed,
            threads=run.options.threads,
        )
        source = MixedSource(source, answers, run.recipe.on_policy)
    if texts.replay is not None:
        source = MixedSource(source, texts.replay, run.texts.replay_share)
    return source if texts.outside_BS is None else OutsideText(source, texts.outside_BS)


def _say_sizes(run: DistillRun) -> None:
    student, teacher = num_parameters(run.plan.spec), num_parameters(run.spec)
    larger = "; the student is larger than its teacher" if student > teacher else ""
    run.callback.on_log(
        f"student: {student:,} parameters ({run.plan.describe()}); teacher: {teacher:,} ({run.teacher}); on {run.device}{larger}"
    )


def _write(run: DistillRun, texts: TrainingData, trained: _Trained, started: float) -> DistilledModel:
    """Write the checkpoint, its report, curves and card, and give the folder its name."""
    card = build_card(run, texts, trained.state, trained.score, trained.teacher_score, trained.before)
    state, folder = trained.state, run.work.new_result()
    scores = {"before_training": trained.before, "held_out_score": trained.score, "teacher_score": trained.teacher_score}
    report = {
        "teacher": run.teacher,
        "student": run.plan.describe(),
        **run.settings,
        **{name: None if score is None else score.as_dict() for name, score in scores.items()},
        **{name: value for name, value in dataclasses.asdict(state).items() if name in ("num_sequences", "num_tokens")},
        "evaluations": state.evaluations,
    }
    with write_errors(folder):
        trained.task.save(folder, trained.score)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        missing = write_curves(folder, state.evaluations)
    write_model_card(folder, card)
    run.work.publish()
    if missing is not None:
        run.callback.on_log(missing)
    return DistilledModel(
        folder=run.work.out,
        source=run.folder,
        card=card,
        seconds=time.monotonic() - started,
        score=trained.score,
        teacher_score=trained.teacher_score,
        before=trained.before,
    )
