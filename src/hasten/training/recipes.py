"""Recipes: the options of each kind of training, as in ``hasten train NAME``.

This module imports no torch. ``build_task`` makes the task of a recipe. Every recipe raises ``InvalidOption`` for values out of
range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Name
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Length, OneOf, Range

MAX_HEADS, MAX_HEAD_LAYERS = 16, 8
MAX_TTT_STEPS = 16
MAX_VIRTUAL_TOKENS = 4096
LM_HEADS = ("model", "copy", "own")

VocabSize = Annotated[int, Range(1, 2**24)]
Width = Annotated[int, Range(1, 2**20)]
LayerNumber = Annotated[int, Range(1, 4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaRecipe:
    """Medusa heads on the last hidden state (Cai et al., 2024, arXiv 2401.10774)."""

    name: ClassVar[str] = "medusa"
    learning_rate: ClassVar[float] = 1e-3
    weight_decay: ClassVar[float] = 0.0

    heads: Annotated[int, Range(1, MAX_HEADS)] = 4  # head i (from 0) drafts the token i + 2 positions ahead
    layers: Annotated[int, Range(1, MAX_HEAD_LAYERS)] = 1  # residual layers per head
    # model: heads use the model's lm_head. copy: the same, and the file holds a copy for engines that need one.
    # own: each head trains its own lm_head, initialised from the model's.
    lm_head: Annotated[str, OneOf(LM_HEADS)] = "model"
    draft_vocab: VocabSize | None = None  # size of the draft vocabulary, the most frequent tokens; None: up to 32,000

    def __post_init__(self) -> None:
        check_fields(self, "Medusa option", InvalidOption)


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleRecipe:
    """An EAGLE-3 head (Li et al., 2025, arXiv 2503.01840)."""

    name: ClassVar[str] = "eagle"
    learning_rate: ClassVar[float] = 1e-3
    weight_decay: ClassVar[float] = 0.0

    init_from: Name | None = None  # a head that gives the initial weights and the shape; None: random weights
    ttt_steps: Annotated[int, Range(1, MAX_TTT_STEPS)] = 5  # steps of training-time test: draft tokens per chain
    draft_vocab: VocabSize | None = None  # size of the draft vocabulary, the most frequent tokens; None: up to 32,000
    # layers (from 1) whose hidden states the head reads; None: low, middle, high
    aux_layers: Annotated[tuple[LayerNumber, ...], Length(3, 3)] | None = None
    intermediate: Width | None = None  # width of the head's MLP; None: the model's
    norm_before_residual: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "EAGLE-3 option", InvalidOption)
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

    init_from: Name | None = None  # a model that gives the initial weights and the shape; None: random weights
    layers: LayerNumber | None = None  # of a model with random weights; None: 2
    hidden: Width | None = None  # hidden size, a multiple of the target's head size; None: the multiple nearest to 128
    # weight of the text's tokens in the loss; the rest is the target's distribution
    hard_label_weight: Annotated[float, Range(0, 1)] = 0.2
    draft_vocab: VocabSize | None = None  # size of the vocabulary it drafts from, the most frequent tokens; None: up to 32,000

    def __post_init__(self) -> None:
        check_fields(self, "draft model option", InvalidOption)
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

    # exits after this many layers; None: five exits in the upper part of the model
    layers: Annotated[tuple[LayerNumber, ...], Length(1, 4096)] | None = None
    # sequences of the calibration set, and as many training sequences for tables; 0: no calibration
    texts: Annotated[int, Range(0, 10**9)] = 256
    # size of the vocabulary of self-drafting layers, the most frequent tokens; None: up to 32,000
    draft_vocab: VocabSize | None = None

    def __post_init__(self) -> None:
        check_fields(self, "early-exit option", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            yield Fault("layers", "distinct numbers of layers from 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftPromptRecipe:
    """A soft prompt (prompt tuning, Lester et al., 2021, arXiv 2104.08691)."""

    name: ClassVar[str] = "soft-prompt"
    learning_rate: ClassVar[float] = 3e-2
    weight_decay: ClassVar[float] = 0.0

    virtual_tokens: Annotated[int, Range(1, MAX_VIRTUAL_TOKENS)] = 20  # embeddings before every input
    # a text whose token embeddings are the initial ones, repeated or cut; None: those of random tokens
    init_text: Annotated[str, Length(1, 2**16)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "soft prompt option", InvalidOption)


Recipe = MedusaRecipe | EagleRecipe | DraftModelRecipe | EarlyExitRecipe | SoftPromptRecipe


def _check_init_from(init_from: str | None, **shape: object) -> None:
    """Raise ``InvalidOption`` if ``init_from`` is given together with options of the shape that it fixes."""
    given = [f"{name}={value}" for name, value in shape.items() if value is not None]
    if init_from is not None and given:
        raise InvalidOption(
            "the checkpoint of init_from fixes the shape, so options of the shape cannot be given with it",
            got=f"{', '.join(given)} and init_from={init_from}",
            remedy="Leave out init_from or those options",
        )
