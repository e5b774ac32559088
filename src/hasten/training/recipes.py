"""Recipes: the options of each kind of training, as in ``hasten train NAME``.

This module imports no torch. ``build_task`` makes the task of a recipe. Every recipe raises ``InvalidOption`` for values out of
range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hasten.core.errors import InvalidOption, nearest
from hasten.training.options import check_ranges

MAX_HEADS, MAX_HEAD_LAYERS = 16, 8
MAX_TTT_STEPS = 16
LM_HEADS = ("model", "copy", "own")


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaRecipe:
    """Medusa heads on the last hidden state (Cai et al., 2024, arXiv 2401.10774)."""

    name: ClassVar[str] = "medusa"
    learning_rate: ClassVar[float] = 1e-3
    weight_decay: ClassVar[float] = 0.0

    heads: int = 4  # head i (from 0) drafts the token i + 2 positions ahead
    layers: int = 1  # residual layers per head
    # model: heads use the model's lm_head. copy: the same, and the file holds a copy for engines that need one.
    # own: each head trains its own lm_head, initialised from the model's.
    lm_head: str = "model"
    draft_vocab: int | None = None  # size of the draft vocabulary, the most frequent tokens; None: up to 32,000

    def __post_init__(self) -> None:
        check_ranges(
            "Medusa",
            ("heads", self.heads, f"1 to {MAX_HEADS}", 1 <= self.heads <= MAX_HEADS),
            ("layers", self.layers, f"1 to {MAX_HEAD_LAYERS}", 1 <= self.layers <= MAX_HEAD_LAYERS),
        )
        if self.lm_head not in LM_HEADS:
            raise InvalidOption("unknown lm_head", got=repr(self.lm_head), remedy=nearest(self.lm_head, LM_HEADS))


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleRecipe:
    """An EAGLE-3 head (Li et al., 2025, arXiv 2503.01840)."""

    name: ClassVar[str] = "eagle"
    learning_rate: ClassVar[float] = 1e-3
    weight_decay: ClassVar[float] = 0.0

    init_from: str | None = None  # a head that gives the initial weights and the shape; None: random weights
    ttt_steps: int = 5  # steps of training-time test: draft tokens per chain
    draft_vocab: int | None = None  # size of the draft vocabulary, the most frequent tokens; None: up to 32,000
    aux_layers: tuple[int, ...] | None = None  # layers (from 1) whose hidden states the head reads; None: low, middle, high
    intermediate: int | None = None  # width of the head's MLP; None: the model's
    norm_before_residual: bool = True

    def __post_init__(self) -> None:
        layers = self.aux_layers
        check_ranges(
            "EAGLE-3",
            ("ttt_steps", self.ttt_steps, f"1 to {MAX_TTT_STEPS}", 1 <= self.ttt_steps <= MAX_TTT_STEPS),
            ("draft_vocab", self.draft_vocab, "from 1", self.draft_vocab is None or self.draft_vocab >= 1),
            ("aux_layers", layers, "three numbers from 1", layers is None or (len(layers) == 3 and min(layers) >= 1)),
            ("intermediate", self.intermediate, "from 1", self.intermediate is None or self.intermediate >= 1),
        )
        _check_init_from(
            self.init_from,
            draft_vocab=self.draft_vocab,
            aux_layers=self.aux_layers,
            intermediate=self.intermediate,
            norm_before_residual=None if self.norm_before_residual else False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModelRecipe:
    """A small model of the target's family, distilled from it (Hinton et al., 2015, arXiv 1503.02531)."""

    name: ClassVar[str] = "draft"
    weight_decay: ClassVar[float] = 0.01

    init_from: str | None = None  # a model that gives the initial weights and the shape; None: random weights
    layers: int | None = None  # of a model with random weights; None: 2
    hidden: int | None = None  # hidden size, a multiple of the target's head size; None: the multiple nearest to 128
    hard_label_weight: float = 0.2  # weight of the text's tokens in the loss; the rest is the target's distribution
    draft_vocab: int | None = None  # size of the vocabulary it drafts from, the most frequent tokens; None: up to 32,000

    def __post_init__(self) -> None:
        weight, allowed = self.hard_label_weight, "0 (target distribution only) to 1 (text only)"
        check_ranges(
            "draft model",
            ("layers", self.layers, "from 1", self.layers is None or self.layers >= 1),
            ("hidden", self.hidden, "from 1", self.hidden is None or self.hidden >= 1),
            ("hard_label_weight", weight, allowed, 0.0 <= weight <= 1.0),
        )
        _check_init_from(self.init_from, layers=self.layers, hidden=self.hidden)

    @property
    def learning_rate(self) -> float:
        """The default peak: trained weights need a lower one than random weights."""
        return 2e-3 if self.init_from is None else 3e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExitRecipe:
    """Exit heads (CALM, Schuster et al., 2022; FastBERT, Liu et al., 2020)."""

    name: ClassVar[str] = "exits"
    learning_rate: ClassVar[float] = 2e-3
    weight_decay: ClassVar[float] = 0.0

    layers: tuple[int, ...] | None = None  # exits after this many layers; None: five exits in the upper part of the model
    texts: int = 256  # sequences of the calibration set, and as many training sequences for tables; 0: no calibration
    draft_vocab: int | None = None  # size of the vocabulary of self-drafting layers, the most frequent tokens; None: up to 32,000

    def __post_init__(self) -> None:
        layers = self.layers
        distinct = layers is None or (bool(layers) and min(layers) >= 1 and len(set(layers)) == len(layers))
        check_ranges(
            "early-exit",
            ("texts", self.texts, "from 0", self.texts >= 0),
            ("layers", layers, "distinct numbers of layers from 1", distinct),
        )


Recipe = MedusaRecipe | EagleRecipe | DraftModelRecipe | EarlyExitRecipe


def _check_init_from(init_from: str | None, **shape: object) -> None:
    """Raise ``InvalidOption`` if ``init_from`` is given together with options of the shape that it fixes."""
    given = [f"{name}={value}" for name, value in shape.items() if value is not None]
    if init_from is not None and given:
        raise InvalidOption(
            "the checkpoint of init_from fixes the shape, so options of the shape cannot be given with it",
            got=f"{', '.join(given)} and init_from={init_from}",
            remedy="Leave out init_from or those options",
        )
