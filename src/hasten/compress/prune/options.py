"""``PruneOptions``: what is removed, by which importance, and how the model recovers.

This module imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Seed, Threads
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Length, OneOf, Range

RANDOM = "random"
STRUCTURED = ("activation", "weight", "taylor", RANDOM)  # importances of whole heads, neurons and channels
MASKS = ("magnitude", "wanda", "sparsegpt")  # importances of single weights, which become zero
METHODS = (*STRUCTURED, *MASKS)
HEADS, NEURONS, WIDTH, LAYERS = PARTS = ("heads", "neurons", "width", "layers")
DEFAULT_PARTS = (HEADS, NEURONS)
LAYER_SCORES = ("influence", "perplexity")
PATTERNS = ("free", "2:4")
OMIT = "Omit it"


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """One of ``ratio``, ``target_params`` and ``target_latency`` says how much is removed.

    Raises ``InvalidOption`` that lists every value out of range.
    """

    method: Annotated[str, OneOf(METHODS)] = "activation"
    # of the structured methods: heads (with their keys and values), feed-forward neurons, channels of the hidden state, layers
    parts: Annotated[tuple[Annotated[str, OneOf(PARTS)], ...], Length(1, len(PARTS))] = DEFAULT_PARTS
    # share of each part, or of the weights of a mask, that is removed; counts are rounded to what a checkpoint can express
    ratio: Annotated[float, Range(0, 0.99)] | None = None
    target_params: Annotated[int, Range(1, 10**15)] | None = None  # most parameters of the result
    target_latency: Annotated[float, Range(0, 1e9, above=True)] | None = None  # most milliseconds per token, decoding at batch 1
    # of the part layers: ShortGPT's block influence, or the perplexity without each layer
    layer_score: Annotated[str, OneOf(LAYER_SCORES)] = "influence"
    pattern: Annotated[str, OneOf(PATTERNS)] = "free"  # of masks; 2:4: two of four consecutive inputs stay
    steps: Annotated[int, Range(1, 1000)] = 1  # rounds of pruning, each followed by recovery
    # training that wins back quality after pruning, by distillation from the unpruned model; in all rounds together. None: none
    recover_minutes: Annotated[float, Range(0, 1e7, above=True)] | None = None
    recover_steps: Annotated[int, Range(1, 10**9)] | None = None
    recover_lr: Annotated[float, Range(0, 1e6, above=True)] = 3e-4  # peak learning rate
    recover_batch: Annotated[int, Range(1, 2**16)] = 8  # sequences per step
    samples: Annotated[int, Range(1, 2**20)] = 128  # calibration sequences
    seq_len: Annotated[int, Range(2, 2**20)] = 512  # tokens of each
    seed: Seed = 0
    threads: Threads | None = None  # None: one per core that this process may use

    def __post_init__(self) -> None:
        check_fields(self, "pruning option", InvalidOption, self._conflicts)

    @property
    def is_structured(self) -> bool:
        return self.method in STRUCTURED

    @property
    def reads_text(self) -> bool:
        """Whether importance is measured on a calibration text."""
        if not self.is_structured:
            return self.method != "magnitude"
        scores_layers = LAYERS in self.parts and self.method != RANDOM
        return scores_layers or (self.method in ("activation", "taylor") and set(self.parts) != {LAYERS})

    @property
    def recovers(self) -> bool:
        return self.recover_minutes is not None or self.recover_steps is not None

    def _conflicts(self) -> Iterator[Fault]:
        goals = (self.ratio, self.target_params, self.target_latency)
        if sum(goal is not None for goal in goals) != 1:
            yield Fault("ratio", "one of ratio, target_params and target_latency", "Give one of them")
        if self.pattern == "2:4" and (self.is_structured or self.ratio != 0.5):
            yield Fault("pattern", "free, or 2:4 with ratio=0.5 and one of " + ", ".join(MASKS))
        if not self.is_structured and self.ratio is None:
            yield Fault("method", "one of " + ", ".join(STRUCTURED) + " with target_params and target_latency", "Give a ratio")
        if not self.is_structured and (self.steps > 1 or self.recovers):
            yield Fault("steps", "1 and no recovery with one of " + ", ".join(MASKS), "Omit them, or choose another method")
        if self.steps > 1 and not self.recovers:
            yield Fault("steps", "1 without recovery", "Give recover_minutes or recover_steps")
        if self.recover_minutes is not None and self.recover_steps is not None:
            yield Fault("recover_minutes", "None with recover_steps", "Give one of them")
        if self.recover_steps is not None and self.recover_steps < self.steps:
            yield Fault("recover_steps", f"at least one per round, so from {self.steps}")
        if len(set(self.parts)) < len(self.parts):
            yield Fault("parts", "different parts")
        yield from self._without_effect()

    def _without_effect(self) -> Iterator[Fault]:
        """Yield options that differ from their defaults and would change nothing."""
        if not self.is_structured and self.parts != DEFAULT_PARTS:
            yield Fault("parts", "the default with one of " + ", ".join(MASKS), OMIT)
        if self.layer_score != LAYER_SCORES[0] and (not self.is_structured or LAYERS not in self.parts or self.method == RANDOM):
            yield Fault("layer_score", f"{LAYER_SCORES[0]}, the default, without the part layers or with the method {RANDOM}", OMIT)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("recover_lr", "recover_batch"):
            if not self.recovers and getattr(self, name) != defaults[name]:
                yield Fault(name, f"{defaults[name]}, the default, without recovery", "Give recover_minutes or recover_steps")
