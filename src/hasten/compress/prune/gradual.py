"""``GradualRun``: rounds of pruning, each followed by training on what the unpruned model says.

::

    OUT.partial/.resume/pruned-002/     the model of a round before its training (float32)
    OUT.partial/.resume/training-002/   the training's own state (``ResumeFolder``)
    OUT.partial/.resume/round-002/      the model of a finished round, and what its training reached (round.json)

A folder appears complete or not at all, and is removed when the next one is there. So a killed run continues where it was, with the
same result.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.json_values import is_integer, read_json
from hasten.compress.new_folder import new_folder
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.structured import prune_model
from hasten.compress.quantize.quantization_run import Steps, Stopped
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import CheckpointError
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus, derived_seed
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.distill.score import DistillScore
from hasten.training.distill.teacher import LiveTeacher
from hasten.training.loop import TrainingLoop
from hasten.training.options import TrainOptions
from hasten.training.resume import ResumeFolder, damaged_state
from hasten.training.schedule import EVALUATIONS
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

ROUND_STEPS = 1000  # of the progress, per round
PRUNING_STEPS = 100  # of these, for pruning before a training
REPORT = "round.json"

Report = Callable[[str], None]  # takes one line of text


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """The model after a round, on validation text."""

    num_parameters: int
    num_steps: int = 0  # of the optimizer
    num_tokens: int = 0  # that passed through the model, those of validation text among them
    kl: float | None = None  # mean, from the unpruned model; None: the round did not train
    perplexity: float | None = None

    def describe(self) -> str:
        """Return what a round that trained has reached, in one line."""
        return (
            f"{self.num_parameters:,} parameters; {self.num_steps:,} steps, {self.num_tokens:,} tokens with validation; then "
            f"{self.kl:.4f} nats from the unpruned model, perplexity {self.perplexity:.4f} (validation text)"
        )


@dataclass(frozen=True, slots=True)
class GradualRun:
    source: Path  # the folder of the unpruned model
    options: PruneOptions
    shapes: Sequence[Shape]  # after each round
    ids_BS: Tensor  # calibration text
    corpus: Corpus | None  # what recovery trains on; None: without recovery
    work: WorkFolder
    steps: Steps
    report: Report

    def complete(self) -> tuple[TrainableModel, list[RoundResult]]:
        """Run all rounds that are not finished, and return the last model and the results of all rounds.

        Raises ``Stopped``, ``CapacityError``, and what pruning and training raise.
        """
        finished = max((number for number in range(1, len(self.shapes) + 1) if self._folder("round", number).is_dir()), default=0)
        model = TrainableModel.load(self._folder("round", finished) if finished else self.source)
        results = self._results(finished)
        teacher = None
        if self.corpus is not None and finished < len(self.shapes):
            teacher = LiveTeacher(TargetModel.load(self.source))
        for number in range(finished + 1, len(self.shapes) + 1):
            self.steps.advance_to((number - 1) * ROUND_STEPS)
            model = self._pruned(number, model)
            result = RoundResult(num_parameters=num_parameters(model.spec))
            if teacher is not None:
                result = self._recover(number, model, teacher)
            results.append(result)
            if result.kl is not None:
                self.report(f"round {number} of {len(self.shapes)}: {result.describe()}")
            self._keep("round", number, model, results)
            for name, old in (("pruned", number), ("training", number), ("round", number - 1)):
                shutil.rmtree(self._folder(name, old), ignore_errors=True)
        self.steps.advance_to(len(self.shapes) * ROUND_STEPS)
        return model, results

    def _pruned(self, number: int, model: TrainableModel) -> TrainableModel:
        """Return the model of the round before training."""
        folder, shape = self._folder("pruned", number), self.shapes[number - 1]
        if folder.is_dir():
            return TrainableModel.load(folder)
        if shape != Shape.of(model.spec):
            first = self.steps.done
            share = ROUND_STEPS - 1 if self.corpus is None else PRUNING_STEPS

            def tick() -> None:
                # The number of calls depends on the method: every one takes a tenth of what is left of the bar.
                self.steps.advance_to(self.steps.done + (first + share - self.steps.done) // 10)

            model = prune_model(model, shape, self.ids_BS, self.options, tick)
        if self.corpus is not None:
            self._keep("pruned", number, model, [])
        return model

    def _recover(self, number: int, student: TrainableModel, teacher: LiveTeacher) -> RoundResult:
        """Train the student in place."""
        assert self.corpus is not None
        options, recipe = train_options(self.options, number), DistillRecipe()
        settings = dataclasses.asdict(options) | {"round": number}
        del settings["threads"]  # a run may resume with another number of them
        resume = ResumeFolder.open(self._folder("training", number), settings)
        task = DistillTask(student, teacher, recipe)
        callback = _RoundCallback(self.steps, number, len(self.shapes), self.report)
        loop: TrainingLoop[DistillScore] = TrainingLoop(
            task, self.corpus, options, resume, callback, lr=self.options.recover_lr, weight_decay=recipe.weight_decay
        )
        score = loop.run(self.steps.should_stop)
        if score is None:
            raise Stopped
        return RoundResult(
            num_parameters=num_parameters(student.spec),
            num_steps=loop.state.step,
            num_tokens=loop.state.num_tokens,
            kl=score.mean_loss,
            perplexity=score.perplexity,
        )

    def _keep(self, name: str, number: int, model: TrainableModel, results: Sequence[RoundResult]) -> None:
        """Write the model of a round in float32, and all results up to it."""
        with new_folder(self._folder(name, number)) as folder:
            model.write(folder, dtype=torch.float32)
            entries = [dataclasses.asdict(result) for result in results]
            (folder / REPORT).write_text(json.dumps({"rounds": entries}) + "\n", encoding="utf-8")

    def _results(self, finished: int) -> list[RoundResult]:
        """Return the results of the finished rounds. Raises ``CheckpointError`` for a damaged file."""
        if not finished:
            return []
        file = self._folder("round", finished) / REPORT
        try:
            entries = read_json(file)["rounds"]
            results = [_checked(entry) for entry in entries]
            if len(results) != finished:
                raise ValueError(f"{len(results)} rounds")
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            raise damaged_state(file.parent, f"{file.name}: {error}") from None
        return results

    def _folder(self, name: str, number: int) -> Path:
        return self.work.resume.folder / f"{name}-{number:03}"


def train_options(options: PruneOptions, number: int) -> TrainOptions:
    """Return the options of a round's training: its share of the steps or minutes.

    Raises ``InvalidOption``.
    """
    rounds, steps = options.steps, options.recover_steps
    return TrainOptions(
        steps=None if steps is None else steps * number // rounds - steps * (number - 1) // rounds,
        minutes=None if options.recover_minutes is None else options.recover_minutes / rounds,
        batch=options.recover_batch,
        seq_len=options.seq_len,
        lr=options.recover_lr,
        precision="auto",
        patience=EVALUATIONS,  # none: a learning rate that falls to the end wins back most there
        seed=derived_seed(options.seed, "recovery", number),
        threads=options.threads,
    )


class _RoundCallback(TrainingCallback):
    """Passes the progress of a round on."""

    def __init__(self, steps: Steps, number: int, rounds: int, report: Report) -> None:
        self._steps, self._number, self._rounds, self._report = steps, number, rounds, report

    def on_log(self, message: str) -> None:
        self._report(f"round {self._number} of {self._rounds}: {message}")

    def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
        done = PRUNING_STEPS + (ROUND_STEPS - PRUNING_STEPS) * step // total_steps
        self._steps.show((self._number - 1) * ROUND_STEPS + done)


def _checked(entry: Any) -> RoundResult:
    """Return a result of a file. Raises ``TypeError`` or ``ValueError``."""
    result = RoundResult(**entry)
    counts = (result.num_parameters, result.num_steps, result.num_tokens)
    figures = (result.kl, result.perplexity)
    if not all(is_integer(count, 0) for count in counts) or not all(figure is None or type(figure) is float for figure in figures):
        raise ValueError(f"{entry!r}")
    return result
