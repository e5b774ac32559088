"""``Fit``: the steps of a training, from the first or from wherever a run was cut off, to the best weights on held-out text.

After ``step`` updates everything is a function of the settings and ``step``: batches come from the seed and the step, the learning
rate from the step, and weights, moments and history from the saved state. So a run that was killed gives the same curve, bit for
bit, as one that was not (on the same number of threads).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hasten.compress.training.base import Trainee
from hasten.compress.training.corpus import Corpus
from hasten.compress.training.options import DEFAULT_STEPS, TrainOptions
from hasten.compress.training.resume import ResumeFolder, Saved
from hasten.compress.training.schedule import EVALUATION_SHARE, EVALUATIONS, evaluates_after, evaluation_windows, rate, warm_up
from hasten.compress.training.score import Score
from hasten.compress.training.watcher import Watcher
from hasten.core.errors import InvalidOption

MAX_NORM = 1.0  # of the gradient (Pascanu et al., 2013)
FINAL_WINDOWS = 4  # times as many held-out windows as an evaluation on the way
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Course:
    """What has happened so far: plain data, saved with every state."""

    total: int  # steps of a training that is not stopped early
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the batches since the last evaluation
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # step, train_loss, and what ``Score.as_dict`` says
    best: int | None = None  # place of the best evaluation in the list

    def stops(self, patience: int) -> bool:
        """Whether the last step is made, or held-out text has not been read better for long enough.

        What was read while the learning rate still rose does not count: weights that were trained before are best there.
        """
        losses = [found["loss"] for found in self.evaluations if found["step"] > warm_up(self.total)]
        waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return self.step >= self.total or waited >= patience


class Fit:
    """One training. ``lr`` and ``weight_decay`` are settled; ``options`` say the rest."""

    def __init__(
        self,
        trainee: Trainee,
        corpus: Corpus,
        options: TrainOptions,
        resume: ResumeFolder,
        watcher: Watcher,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.trainee, self.corpus, self.options, self.resume, self.watcher = trainee, corpus, options, resume, watcher
        self.lr = lr
        self.parameters = dict(sorted(trainee.parameters().items()))
        self.optimizer = torch.optim.AdamW(list(self.parameters.values()), lr=lr, weight_decay=weight_decay)
        self.best: dict[str, Tensor] = {}
        self.course = self._restore() or self._begin()

    def run(self, stop: Callable[[], bool]) -> Score | None:
        """Trains to the end and leaves the best weights in place; their score on held-out text. None if ``stop`` asked to stop:
        then the state is saved. Raises ``InvalidOption`` when the loss is no number any more.
        """
        saved_at = time.monotonic()
        while not self.course.stops(self.options.patience):
            if stop():
                self._save()
                return None
            loss = self._step()
            self.watcher.moved(self.course.step, self.course.total, loss)
            if evaluates_after(self.course.step, self.course.total):
                self._evaluate()
            if time.monotonic() - saved_at >= self.options.save_every:
                self._save()
                saved_at = time.monotonic()
        self._save()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])
        return self._score(FINAL_WINDOWS)

    def _step(self) -> float:
        course = self.course
        for group in self.optimizer.param_groups:
            group["lr"] = rate(course.step, course.total, self.lr)
        loss = self._gradients(course.step)
        if not math.isfinite(loss):
            raise InvalidOption(
                f"the loss is no number any more at step {course.step + 1}",
                got=f"lr={self.lr:g}",
                remedy="Train with a smaller --lr",
            )
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        course.step += 1
        course.losses.append(loss)
        return loss

    def _gradients(self, step: int) -> float:
        loss = self.trainee.loss(self.corpus.batch(step, self.options.batch, self.options.window, self.options.seed))
        torch.autograd.backward(loss)
        return float(loss.detach())

    def _evaluate(self) -> None:
        course, score = self.course, self._score(1)
        train_loss = sum(course.losses) / len(course.losses)
        course.evaluations.append({"step": course.step, "train_loss": train_loss, **score.as_dict()})
        course.losses.clear()
        best = math.inf if course.best is None else course.evaluations[course.best]["loss"]
        if score.mean_loss < best or course.best is None:
            course.best = len(course.evaluations) - 1
            self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.watcher.evaluated(course.step, course.total, train_loss, score)

    def _score(self, times: int) -> Score:
        """On ``times`` as many held-out windows as an evaluation on the way reads."""
        batch, window = self.options.batch, self.options.window
        limit = times * evaluation_windows(self.course.total, batch)
        score = Score.nothing()
        with torch.no_grad():
            for held_out in self.corpus.held_out(batch, window, limit):
                score += self.trainee.evaluate(held_out)
        return score

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"weight.{name}": parameter for name, parameter in self.parameters.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
        self.resume.save(self.course.step, Saved(tensors, dataclasses.asdict(self.course)))

    def _restore(self) -> Course | None:
        saved = self.resume.load()
        if saved is None:
            return None
        course = Course(**saved.values)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved.tensors[f"weight.{name}"])
                if f"{_MOMENTS[0]}.{name}" in saved.tensors:
                    state: dict[str, Tensor] = {"step": torch.tensor(float(course.step))}
                    state |= {moment: saved.tensors[f"{moment}.{name}"].clone() for moment in _MOMENTS}
                    self.optimizer.state[parameter] = state
        self.best = {name.removeprefix("best."): tensor for name, tensor in saved.tensors.items() if name.startswith("best.")}
        self.watcher.note(f"going on after step {course.step} of {course.total}")
        return course

    def _begin(self) -> Course:
        if self.options.minutes is None:
            return Course(self.options.steps or DEFAULT_STEPS)
        course = Course(self._steps_within(self.options.minutes * 60))
        self.watcher.note(f"{self.options.minutes:g} minutes are enough for about {course.total} steps")
        self.course = course
        self._save()  # the number of steps must not be measured again
        return course

    def _steps_within(self, seconds: float) -> int:
        """Steps and their evaluations that fit into the time: the second of two steps is timed, and undone."""
        spent = []
        for _ in range(2):
            begin = time.monotonic()
            self._gradients(0)
            self.optimizer.zero_grad(set_to_none=True)
            spent.append(time.monotonic() - begin)
        begin = time.monotonic()
        with torch.no_grad():
            for held_out in self.corpus.held_out(self.options.batch, self.options.window, self.options.batch):
                self.trainee.evaluate(held_out)
        evaluation = time.monotonic() - begin
        return max(EVALUATIONS, int(seconds / (spent[1] + EVALUATION_SHARE * evaluation)))
