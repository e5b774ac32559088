"""``Rollouts``: batches whose outputs the model in training generates itself, anew every few batches.

They are what on-policy methods learn from: distillation (GKD, Agarwal et al., 2024, arXiv 2306.13649) and reinforcement learning.

A window is a run of ``refresh_every`` batches. Its outputs are generated with the weights of its first batch and written before
they are used, so a resumed run reads the same ones::

    .resume/rollouts-00000003.safetensors    the window of batches [3 · refresh_every, 4 · refresh_every)

Shape suffixes: N outputs of a window · T tokens of all prompts and outputs, one row per output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch, derived_seed
from hasten.training.examples import Example, Examples
from hasten.training.resume import ResumeFolder, damaged_state
from hasten.training.sample_outputs import sample_outputs
from hasten.training.trainable_model import TrainableModel

_PREFIX = "rollouts-"
_EXAMPLES = ("ids_T", "ends_N", "num_input_N", "counts")

Annotate = Callable[[Examples], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Window:
    examples: Examples  # the outputs of a prompt follow each other; all are training examples
    notes: Mapping[str, Tensor]  # what ``annotate`` returned


class Rollouts:
    """A ``BatchSource`` without validation batches.

    Batch ``step`` counts the calls that train, not the optimizer's steps.
    """

    def __init__(
        self,
        student: TrainableModel,
        prompts: Sequence[Sequence[int]],
        resume: ResumeFolder,
        *,
        side_files_of: Path,
        max_new_tokens: int,
        refresh_every: int,
        temperature: float,
        seed: int,
        threads: int | None,
        group_size: int = 1,
        annotate: Annotate | None = None,
        callback: TrainingCallback | None = None,
    ) -> None:
        """``group_size``: outputs per prompt, one after the other in a batch.

        ``seed``: of prompts and sampling.

        ``annotate`` returns further tensors of the outputs, which are computed once per window, with the weights that generated
        them, and saved. Raises ``InvalidOption`` if there is no prompt.
        """
        if not prompts or not all(prompts):
            raise InvalidOption("there are no prompts to generate outputs from", got=f"{len(prompts)}, with empty ones")
        self._student, self._prompts, self._resume, self._side_files_of = student, prompts, resume, side_files_of
        self._max_new_tokens, self._refresh_every, self._temperature = max_new_tokens, refresh_every, temperature
        self._seed, self._threads, self._group_size, self._annotate = seed, threads, group_size, annotate
        self._callback = callback or TrainingCallback()
        self._current: tuple[int, Window] | None = None
        self._versions: dict[int, int | None] = {}  # window -> version of the saved state when the window began

    @property
    def summary(self) -> str:
        return f"{len(self._prompts):,} prompts, of which outputs are generated every {self._refresh_every} batches"

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        """Return ``size`` prompts with outputs; ``seq_len`` limits none.

        It depends on the arguments, and on the saved outputs or, for a new window, the student's current weights.
        """
        return self.window(step, size).examples.select(self.rows(step, size), derived_seed(seed, "step", step))

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        """Yield nothing: generated outputs validate no student."""
        return iter(())

    def rows(self, step: int, size: int) -> range:
        """Return which outputs of the window batch ``step`` has."""
        first = step % self._refresh_every * size
        return range(first, first + size)

    def window(self, step: int, size: int) -> Window:
        """Return the window of batch ``step``, generated, or read from the saved state."""
        number = step // self._refresh_every
        if self._current is None or self._current[0] != number:
            self._current = None  # free its memory first
            window = self._read(number, size) or self._generate(number, size)
            self._current = number, window
            self._versions[number] = self._resume.version()
            self._delete_old()
        return self._current[1]

    def _read(self, number: int, size: int) -> Window | None:
        saved = self._resume.read(_name(number))
        if saved is None:
            return None
        if any(name not in saved for name in _EXAMPLES) or len(saved["ends_N"]) != self._refresh_every * size:
            raise damaged_state(self._resume.folder, f"{_name(number)} has other outputs")
        return Window(Examples(**{name: saved.pop(name) for name in _EXAMPLES}), saved)

    def _generate(self, number: int, size: int) -> Window:
        if size % self._group_size:
            raise InvalidOption(
                "a batch holds whole groups of outputs",
                got=f"batch={size}, group_size={self._group_size}",
                allowed=f"batches of a multiple of {self._group_size}",
            )
        count = self._refresh_every * size // self._group_size
        positions = range(number * count, (number + 1) * count)
        prompts = [self._prompts[index] for index in self._order(positions)]
        sampled = sample_outputs(
            self._student,
            prompts,
            [derived_seed(self._seed, "rollout", position) for position in positions],
            work=self._resume.folder,
            side_files_of=self._side_files_of,
            num_samples=self._group_size,
            max_new_tokens=self._max_new_tokens,
            temperature=self._temperature,
            threads=self._threads,
        )
        pairs = zip(prompts, sampled.outputs, strict=True)
        examples = Examples.join([Example([*prompt, *ids], len(prompt)) for prompt, outputs in pairs for ids in outputs], [])
        notes = {} if self._annotate is None else self._annotate(examples)
        self._resume.write(_name(number), {**examples.tensors(), **notes})
        self._callback.on_log(f"batch {number * self._refresh_every}: generated {sampled.describe()}")
        return Window(examples, notes)

    def _order(self, positions: range) -> list[int]:
        """Return the prompts at these positions of all epochs; each epoch shuffles them."""
        num_prompts, indices = len(self._prompts), []
        for epoch in range(positions[0] // num_prompts, positions[-1] // num_prompts + 1):
            generator = torch.Generator().manual_seed(derived_seed(self._seed, "prompts", epoch))
            order = torch.randperm(num_prompts, generator=generator)
            begin, end = max(positions[0], epoch * num_prompts), min(positions[-1] + 1, (epoch + 1) * num_prompts)
            indices += [int(order[position % num_prompts]) for position in range(begin, end)]
        return indices

    def _delete_old(self) -> None:
        """Delete the windows that no saved state needs.

        A state that was saved after window w began continues in window w or later, and never in an earlier one.
        """
        version = self._resume.version()
        kept = max((number for number, begun in self._versions.items() if begun != version), default=None)
        if kept is None:
            return
        for name in self._resume.names(_PREFIX):
            if name < _name(kept):
                self._resume.delete(name)
        self._versions = {number: begun for number, begun in self._versions.items() if number >= kept}


def _name(window: int) -> str:
    return f"{_PREFIX}{window:08}"
