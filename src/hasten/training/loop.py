"""``TrainingLoop``: the optimizer steps of one training, up to the lowest validation loss.

Batches depend on the seed and the step, the learning rate on the step; parameters, moments and history are saved. A killed and
resumed run therefore gives the same result, bit for bit, as an uninterrupted run with the same number of threads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor

from hasten.checkpoints.json_values import is_integer
from hasten.core.errors import InvalidOption
from hasten.training.base import TrainingTask, loss_weight
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch, BatchSource
from hasten.training.optimizer import Optimizer
from hasten.training.options import DEFAULT_STEPS, TrainOptions
from hasten.training.precision import autocast
from hasten.training.resume import ResumeFolder, SavedState, damaged_state
from hasten.training.schedule import (
    EVALUATION_SHARE,
    EVALUATIONS,
    is_evaluation_step,
    learning_rate,
    num_evaluation_sequences,
    warmup_steps,
)
from hasten.training.score import AnyScore, StoppingScore

MAX_GRAD_NORM = 1.0  # gradient clipping (Pascanu et al., 2013)
FINAL_EVALUATION_FACTOR = 4  # sequences of the final evaluation, relative to the others


@dataclass(slots=True)
class TrainingState:
    """Progress and history of a training, saved as plain data."""

    total_steps: int  # without early stopping
    step: int = 0
    losses: list[float] = field(default_factory=list)  # training losses since the last evaluation
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # step, train_loss and the entries of ``Score.as_dict``
    best: int | None = None  # index of the evaluation with the lowest loss
    num_sequences: int = 0  # that passed through the model, for training and for validation
    num_tokens: int = 0  # of these, with padding
    stopped: bool = False  # by a score

    def should_stop(self, patience: int) -> bool:
        """Return whether all steps are done, or a score or ``patience`` evaluations ended them.

        Evaluations during warm-up do not count: pretrained weights get worse there before they improve.
        """
        losses = [entry["loss"] for entry in self.evaluations if entry["step"] > warmup_steps(self.total_steps)]
        without_progress = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return self.stopped or self.step >= self.total_steps or without_progress >= patience


class TrainingLoop(Generic[AnyScore]):
    def __init__(
        self,
        task: TrainingTask[AnyScore],
        corpus: BatchSource,
        options: TrainOptions,
        resume: ResumeFolder,
        callback: TrainingCallback,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        """Restore the state that ``resume`` holds, or begin a new one. ``lr`` replaces that of ``options``."""
        self.task, self.corpus, self.options, self.resume, self.callback = task, corpus, options, resume, callback
        self.lr = lr
        self.parameters = dict(sorted(task.parameters().items()))
        self.device = next(iter(self.parameters.values())).device.type  # of the products; moments follow the parameters
        self.optimizer = Optimizer(options.optimizer, self.parameters, lr=lr, weight_decay=weight_decay)
        self.best: dict[str, Tensor] = {}
        self.state = self._restore() or self._begin()

    def run(self, should_stop: Callable[[], bool]) -> AnyScore | None:
        """Train, put the best parameters in place and return their validation score.

        None if ``should_stop`` returned True; the state is saved then. Raises ``InvalidOption`` for a loss that is not finite.
        """
        saved_at = time.monotonic()
        while not self.state.should_stop(self.options.patience):
            if should_stop():
                self._save()
                return None
            loss = self._step()
            self.callback.on_step_end(self.state.step, self.state.total_steps, loss)
            if is_evaluation_step(self.state.step, self.state.total_steps):
                self._evaluate()
            if time.monotonic() - saved_at >= self.options.save_every:
                self._save()
                saved_at = time.monotonic()
        self._save()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])
        return self._validate(FINAL_EVALUATION_FACTOR * self._num_evaluation_sequences)

    @property
    def _num_evaluation_sequences(self) -> int:
        return num_evaluation_sequences(self.state.total_steps, self.options.batch)

    def _step(self) -> float:
        state = self.state
        loss = self._backward(state.step, count=True)
        if not math.isfinite(loss):
            raise InvalidOption(
                f"the loss is not finite at step {state.step + 1}", got=f"lr={self.lr:g}", remedy="Train with a smaller --lr"
            )
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRAD_NORM)
        self.optimizer.step(learning_rate(state.step, state.total_steps, self.lr))
        state.step += 1
        state.losses.append(loss)
        return loss

    def _batches(self, step: int, *, count: bool) -> Iterator[Batch]:
        """Yield the batches whose gradients one step adds up. ``count``: count their tokens."""
        options = self.options
        for number in range(step * options.accumulate, (step + 1) * options.accumulate):
            batch = self.corpus.batch(number, options.batch, options.seq_len, options.seed)
            if count:
                self._count(batch)
            yield batch

    def _count(self, batch: Batch) -> None:
        self.state.num_sequences += len(batch.ids_BS)
        self.state.num_tokens += batch.ids_BS.numel()

    def _backward(self, step: int, *, count: bool) -> float:
        """Add up the gradients of a step's batches, and return the loss of the step."""
        batches = list(self._batches(step, count=count))
        weights = [loss_weight(self.task, batch) for batch in batches]
        total = 0.0
        for batch, weight in zip(batches, weights, strict=True):
            with autocast(self.options.precision, self.device):
                loss = self.task.loss(batch) * (weight / max(sum(weights), 1.0))
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total

    def _evaluate(self) -> None:
        state, score = self.state, self._validate(self._num_evaluation_sequences)
        train_loss = sum(state.losses) / len(state.losses)
        state.evaluations.append({"step": state.step, "train_loss": train_loss, **score.as_dict()})
        state.losses.clear()
        either: object = score
        state.stopped = isinstance(either, StoppingScore) and either.must_stop
        if state.best is None or score.mean_loss < state.evaluations[state.best]["loss"]:
            state.best = len(state.evaluations) - 1
            self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.callback.on_evaluate(state.step, state.total_steps, train_loss, score)

    def _validate(self, num_sequences: int) -> AnyScore:
        """Return the score of validation sequences, and count their tokens."""
        batches = self._validation_batches(num_sequences)
        for batch in batches:
            self._count(batch)
        return self._validation_score(batches)

    def _validation_batches(self, num_sequences: int) -> list[Batch]:
        return list(self.corpus.validation_batches(self.options.batch, self.options.seq_len, num_sequences))

    @torch.no_grad()
    def _validation_score(self, batches: list[Batch]) -> AnyScore:
        with autocast(self.options.precision, self.device):
            return functools.reduce(operator.add, (self.task.evaluate(batch) for batch in batches))

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter
        tensors |= {f"{moment}/{name}": value for moment, name, value in self.optimizer.tensors()}
        self.resume.save(self.state.step, SavedState(tensors, dataclasses.asdict(self.state)))

    def _restore(self) -> TrainingState | None:
        saved = self.resume.load()
        if saved is None:
            return None
        try:
            state = self._restore_from(saved)
        except (KeyError, RuntimeError, TypeError) as error:
            raise damaged_state(self.resume.folder, f"{type(error).__name__}: {error}") from None
        self.callback.on_log(f"resuming after step {state.step} of {state.total_steps}")
        return state

    def _restore_from(self, saved: SavedState) -> TrainingState:
        """Raises an error of Python or PyTorch for a value or a tensor that is missing or of another kind."""
        state = TrainingState(**saved.values)
        if not is_integer(state.total_steps) or not is_integer(state.step, 0):
            raise TypeError(f"step {state.step!r} of {state.total_steps!r}")
        if not is_integer(state.num_sequences, 0) or not is_integer(state.num_tokens, 0):
            raise TypeError(f"{state.num_tokens!r} tokens of {state.num_sequences!r} sequences")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved.tensors[f"weight.{name}"])
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in saved.tensors.items():
            moment, slash, name = key.partition("/")
            if slash:
                moments.setdefault(name, {})[moment] = value
        self.optimizer.restore(moments)
        self.best = {name.removeprefix("best."): tensor for name, tensor in saved.tensors.items() if name.startswith("best.")}
        return state

    def _begin(self) -> TrainingState:
        if self.options.minutes is None:
            return TrainingState(self.options.steps or DEFAULT_STEPS)
        self.state = TrainingState(self._steps_within(self.options.minutes * 60))
        self.callback.on_log(f"{self.options.minutes:g} minutes allow about {self.state.total_steps} steps")
        self._save()  # a resumed run must not measure the number of steps again
        return self.state

    def _steps_within(self, seconds: float) -> int:
        """Return how many steps, with their evaluations, fit into a time. Runs two steps and times the second."""
        for _ in range(2):
            begin = time.monotonic()
            self._backward(0, count=False)
            self.optimizer.zero_grad()
            step_time = time.monotonic() - begin
        begin = time.monotonic()
        self._validation_score(self._validation_batches(self.options.batch))
        evaluation_time = time.monotonic() - begin
        return max(EVALUATIONS, int(seconds / (step_time + EVALUATION_SHARE * evaluation_time)))
