"""``TrainingLoop``: the steps of a training, from the first or from wherever a run was cut off, to the best weights on held-out text.

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

from hasten.core.errors import InvalidOption
from hasten.training.base import TrainingTask
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.draft_score import DraftScore
from hasten.training.options import DEFAULT_STEPS, TrainOptions
from hasten.training.resume import ResumeFolder, Saved
from hasten.training.schedule import EVALUATION_SHARE, EVALUATIONS, evaluates_after, evaluation_windows, rate, warm_up

MAX_NORM = 1.0  # of the gradient (Pascanu et al., 2013)
FINAL_WINDOWS = 4  # times as many held-out windows as an evaluation on the way
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class TrainingState:
    """What has happened so far: plain data, saved with every state."""

    total: int  # steps of a training that is not stopped early
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the batches since the last evaluation
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # step, train_loss, and what ``DraftScore.as_dict`` says
    best: int | None = None  # place of the best evaluation in the list

    def stops(self, patience: int) -> bool:
        """Whether the last step is made, or held-out text has not been read better for long enough.

        What was read while the learning rate still rose does not count: weights that were trained before are best there.
        """
        losses = [found["loss"] for found in self.evaluations if found["step"] > warm_up(self.total)]
        waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return self.step >= self.total or waited >= patience


class TrainingLoop:
    """One training. ``lr`` and ``weight_decay`` are settled; ``options`` say the rest."""

    def __init__(
        self,
        task: TrainingTask,
        corpus: Corpus,
        options: TrainOptions,
        resume: ResumeFolder,
        callback: TrainingCallback,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.task, self.corpus, self.options, self.resume, self.callback = task, corpus, options, resume, callback
        self.lr = lr
        self.parameters = dict(sorted(task.parameters().items()))
        self.optimizer = torch.optim.AdamW(list(self.parameters.values()), lr=lr, weight_decay=weight_decay)
        self.best: dict[str, Tensor] = {}
        self.state = self._restore() or self._begin()

    def run(self, stop: Callable[[], bool]) -> DraftScore | None:
        """Trains to the end and leaves the best weights in place; their score on held-out text. None if ``stop`` asked to stop:
        then the state is saved. Raises ``InvalidOption`` when the loss is no number any more.
        """
        saved_at = time.monotonic()
        while not self.state.stops(self.options.patience):
            if stop():
                self._save()
                return None
            loss = self._step()
            self.callback.moved(self.state.step, self.state.total, loss)
            if evaluates_after(self.state.step, self.state.total):
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
        state = self.state
        for group in self.optimizer.param_groups:
            group["lr"] = rate(state.step, state.total, self.lr)
        loss = self._gradients(state.step)
        if not math.isfinite(loss):
            raise InvalidOption(
                f"the loss is no number any more at step {state.step + 1}",
                got=f"lr={self.lr:g}",
                remedy="Train with a smaller --lr",
            )
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.losses.append(loss)
        return loss

    def _gradients(self, step: int) -> float:
        loss = self.task.loss(self.corpus.batch(step, self.options.batch, self.options.seq_len, self.options.seed))
        torch.autograd.backward(loss)
        return float(loss.detach())

    def _evaluate(self) -> None:
        state, score = self.state, self._score(1)
        train_loss = sum(state.losses) / len(state.losses)
        state.evaluations.append({"step": state.step, "train_loss": train_loss, **score.as_dict()})
        state.losses.clear()
        best = math.inf if state.best is None else state.evaluations[state.best]["loss"]
        if score.mean_loss < best or state.best is None:
            state.best = len(state.evaluations) - 1
            self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.callback.evaluated(state.step, state.total, train_loss, score)

    def _score(self, times: int) -> DraftScore:
        """On ``times`` as many held-out windows as an evaluation on the way reads."""
        batch, window = self.options.batch, self.options.seq_len
        limit = times * evaluation_windows(self.state.total, batch)
        score = DraftScore.nothing()
        with torch.no_grad():
            for held_out in self.corpus.held_out(batch, window, limit):
                score += self.task.evaluate(held_out)
        return score

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"weight.{name}": parameter for name, parameter in self.parameters.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
        self.resume.save(self.state.step, Saved(tensors, dataclasses.asdict(self.state)))

    def _restore(self) -> TrainingState | None:
        saved = self.resume.load()
        if saved is None:
            return None
        state = TrainingState(**saved.values)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved.tensors[f"weight.{name}"])
                if f"{_MOMENTS[0]}.{name}" in saved.tensors:
                    moments: dict[str, Tensor] = {"step": torch.tensor(float(state.step))}
                    moments |= {moment: saved.tensors[f"{moment}.{name}"].clone() for moment in _MOMENTS}
                    self.optimizer.state[parameter] = moments
        self.best = {name.removeprefix("best."): tensor for name, tensor in saved.tensors.items() if name.startswith("best.")}
        self.callback.note(f"going on after step {state.step} of {state.total}")
        return state

    def _begin(self) -> TrainingState:
        if self.options.minutes is None:
            return TrainingState(self.options.steps or DEFAULT_STEPS)
        state = TrainingState(self._steps_within(self.options.minutes * 60))
        self.callback.note(f"{self.options.minutes:g} minutes are enough for about {state.total} steps")
        self.state = state
        self._save()  # the number of steps must not be measured again
        return state

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
            for held_out in self.corpus.held_out(self.options.batch, self.options.seq_len, self.options.batch):
                self.task.evaluate(held_out)
        evaluation = time.monotonic() - begin
        return max(EVALUATIONS, int(seconds / (spent[1] + EVALUATION_SHARE * evaluation)))
