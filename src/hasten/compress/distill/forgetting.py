"""``ForgettingScore``: a student inside the distillation set and outside it, at every evaluation.

A student that learns one text forgets others. ``OutsideText`` adds sequences of another text to the validation batches of a source,
and ``ForgettingTask`` scores them apart.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core.errors import InvalidOption
from hasten.quality.window import spread
from hasten.text.tokenizer import TextTokenizer
from hasten.training.base import TrainingTask, loss_weight
from hasten.training.corpus import Batch, BatchSource
from hasten.training.distill.score import DistillScore
from hasten.training.documents import encode_documents

MAX_SEQUENCES = 256  # of text outside the set that are kept; as many as the longest evaluation reads


class OutsideBatch(Batch):
    """A validation batch of text outside the distillation set."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingScore:
    """Scores inside and outside the set; ``mean_loss``, by which the loop chooses, is that inside."""

    inside: DistillScore | None = None
    outside: DistillScore | None = None  # None: no text outside the set

    def __add__(self, other: ForgettingScore) -> ForgettingScore:
        return ForgettingScore(inside=_sum(self.inside, other.inside), outside=_sum(self.outside, other.outside))

    @property
    def mean_loss(self) -> float:
        assert self.inside is not None, "the source has no validation batch"
        return self.inside.mean_loss

    def as_dict(self) -> dict[str, Any]:
        """Return the entries of the score inside, and those of the other one under "outside"."""
        assert self.inside is not None
        entries = self.inside.as_dict()
        return entries if self.outside is None else {**entries, "outside": self.outside.as_dict()}

    def describe(self) -> str:
        assert self.inside is not None
        inside, outside = self.inside.describe(), self.outside
        return inside if outside is None else f"{inside}; outside the set: loss {outside.mean_loss:.3f}, {outside.describe()}"


@dataclass(frozen=True, slots=True)
class ForgettingTask:
    """A task whose validation batches may be of two kinds. All else is the task's."""

    task: TrainingTask[DistillScore]
    outside_task: TrainingTask[DistillScore]  # scores text outside the set; the same, or one without a teacher

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self.task.parameters()

    def loss(self, batch: Batch) -> Tensor:
        return self.task.loss(batch)

    def weight(self, batch: Batch) -> float:
        return loss_weight(self.task, batch)

    def evaluate(self, batch: Batch) -> ForgettingScore:
        if isinstance(batch, OutsideBatch):
            return ForgettingScore(outside=self.outside_task.evaluate(batch))
        return ForgettingScore(inside=self.task.evaluate(batch))

    def save(self, folder: Path, score: ForgettingScore) -> None:
        assert score.inside is not None
        self.task.save(folder, score.inside)


@dataclass(frozen=True, slots=True)
class OutsideText:
    """A source whose validation batches are followed by as many sequences of ``ids_BS``."""

    source: BatchSource
    ids_BS: Tensor

    @property
    def summary(self) -> str:
        return f"{self.source.summary}; {len(self.ids_BS):,} sequences outside the set"

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        return self.source.batch(step, size, seq_len, seed)

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        yield from self.source.validation_batches(size, seq_len, limit)
        for number, ids_BS in enumerate(torch.split(self.ids_BS[:limit], size)):
            yield OutsideBatch(ids_BS.long(), number)


def outside_sequences(file: Path, tokenizer: TextTokenizer, seq_len: int) -> Tensor:
    """Return up to ``MAX_SEQUENCES`` sequences of a file of texts, [B, S] int32.

    The first few are spread over the texts. Raises ``InvalidOption`` for a file that cannot be read or has not one sequence, and
    ``InvalidRequest`` for a text that the vocabulary cannot express.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream = array("i")
    for document in encode_documents(file, tokenizer):
        stream.extend([*document, *end])
    count = len(stream) // seq_len
    if count == 0:
        raise InvalidOption(
            f"the text {file} outside the set is too short for one sequence",
            got=f"{len(stream):,} tokens",
            allowed=f"at least {seq_len:,}",
            remedy="Give a longer text with --outside, or shorter sequences with --seq-len",
        )
    sequences_NS = torch.frombuffer(stream, dtype=torch.int32)[: count * seq_len].view(count, seq_len)
    return sequences_NS[spread(count)[:MAX_SEQUENCES]].clone()


def _sum(first: DistillScore | None, second: DistillScore | None) -> DistillScore | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
