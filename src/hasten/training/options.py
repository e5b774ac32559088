"""``TrainOptions``: the training options that all recipes share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Seed, Threads
from hasten.core.errors import InvalidOption
from hasten.core.field_type import OneOf, Range
from hasten.training.names import OPTIMIZERS, PRECISIONS

DEFAULT_STEPS = 1000
MAX_SECONDS = 1e9  # 30 years


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Length, speed and data of a training. Raises ``InvalidOption`` that lists every value out of range."""

    steps: Annotated[int, Range(1, 10**9)] | None = None  # optimizer steps; None: derived from ``minutes``, or DEFAULT_STEPS
    # approximate duration; the number of steps follows from a timing of the first ones
    minutes: Annotated[float, Range(0, MAX_SECONDS / 60, above=True)] | None = None
    batch: Annotated[int, Range(1, 2**16)] = 8  # sequences per batch
    accumulate: Annotated[int, Range(1, 2**16)] = 1  # batches per step, whose gradients add up
    seq_len: Annotated[int, Range(32, 2**20)] = 512  # tokens per sequence
    lr: Annotated[float, Range(0, 1e6, above=True)] | None = None  # peak learning rate; None: the recipe's default
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"  # muon: for matrices inside the layers, and AdamW for the rest
    # of matrix products; weights and moments are float32. auto: bfloat16 where the processor computes in it
    precision: Annotated[str, OneOf(PRECISIONS)] = "float32"
    seed: Seed = 0
    validation_fraction: Annotated[float, Range(0, 0.5, above=True)] = 0.05  # part of the tokens that is kept for validation
    # evaluations without a lower validation loss (of 20 per training) before training stops
    patience: Annotated[int, Range(1, 10**9)] = 5
    save_every: Annotated[float, Range(0, MAX_SECONDS)] = 60.0  # seconds between saves of the training state; 0: after every step
    # number of documents that the target model generates to train on, instead of the data
    self_distill: Annotated[int, Range(1, 10**9)] | None = None
    threads: Threads | None = None  # None: one per core that this process may use

    def __post_init__(self) -> None:
        check_fields(self, "training option", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if self.steps is not None and self.minutes is not None:
            yield Fault("minutes", "None with steps", "Give the number of steps or a time, not both")
