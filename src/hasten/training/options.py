"""``TrainOptions``: the training options that all recipes share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hasten.core.errors import InvalidOption

DEFAULT_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Length, speed and data of a training. Raises ``InvalidOption`` that lists every value out of range."""

    steps: int | None = None  # optimizer steps; None: derived from ``minutes``, or DEFAULT_STEPS
    minutes: float | None = None  # approximate duration; the number of steps follows from a timing of the first ones
    batch: int = 8  # sequences per step
    seq_len: int = 512  # tokens per sequence
    lr: float | None = None  # peak learning rate; None: the recipe's default
    seed: int = 0
    validation_fraction: float = 0.05  # part of the tokens that is kept for validation
    patience: int = 5  # evaluations without a lower validation loss (of 20 per training) before training stops
    save_every: float = 60.0  # seconds between saves of the training state; 0: after every step
    self_distill: int | None = None  # number of documents that the target model generates to train on, instead of the data
    threads: int | None = None  # None: one per core that this process may use

    def __post_init__(self) -> None:
        check_ranges(
            "training",
            ("steps", self.steps, "from 1", self.steps is None or self.steps >= 1),
            ("minutes", self.minutes, "above 0", self.minutes is None or 0 < self.minutes < math.inf),
            ("batch", self.batch, "from 1", self.batch >= 1),
            ("seq_len", self.seq_len, "from 32", self.seq_len >= 32),
            ("lr", self.lr, "above 0", self.lr is None or 0 < self.lr < math.inf),
            ("validation_fraction", self.validation_fraction, "above 0, up to 0.5", 0 < self.validation_fraction <= 0.5),
            ("patience", self.patience, "from 1", self.patience >= 1),
            ("save_every", self.save_every, "from 0", 0 <= self.save_every < math.inf),
            ("self_distill", self.self_distill, "from 1", self.self_distill is None or self.self_distill >= 1),
            ("threads", self.threads, "from 1", self.threads is None or self.threads >= 1),
        )
        if self.steps is not None and self.minutes is not None:
            raise InvalidOption(
                "training ends after a number of steps or a time, not both", got=f"{self.steps} steps and {self.minutes} minutes"
            )


def check_ranges(subject: str, *checks: tuple[str, object, str, bool]) -> None:
    """Raise ``InvalidOption`` for every (name, value, allowed, is allowed) whose value is not allowed."""
    wrong = [f"{name}={value!r} (allowed: {allowed})" for name, value, allowed, ok in checks if not ok]
    if wrong:
        raise InvalidOption(f"{subject} options are out of range: {'; '.join(wrong)}")
