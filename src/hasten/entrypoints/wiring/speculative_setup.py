"""``SpeculativeSetup``: from the options to a drafter, before and after the KV cache is sized."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.engine_options import MODEL_FREE, EngineOptions
from hasten.core.plan import Runner
from hasten.entrypoints.wiring.load_drafters import (
    STATE_SHARE,
    LoadedDrafter,
    load_draft_heads,
    load_draft_model,
    max_draft_tokens,
)
from hasten.models.load import DecoderPlan, LoadedModel
from hasten.ops.cpu.memory import available_bytes
from hasten.runners.backends.base import Backend
from hasten.runners.base import KvCacheConfig
from hasten.runners.self_draft_runner import LayerwiseSelfDraftRunner
from hasten.runners.single_thread import SingleThreadDrafter
from hasten.runners.step_timing import measure_step_seconds
from hasten.speculative.cost_model import CostModel
from hasten.speculative.drafters.base import INDEX_BYTES, MAX_INDEXED_TOKENS, Drafter, ModelDrafter
from hasten.speculative.drafters.prompt_lookup import PromptLookup
from hasten.speculative.drafters.self_speculation import SelfSpeculation
from hasten.speculative.drafters.suffix import Suffix
from hasten.speculative.policy import AutoDrafter

_MODEL_FREE: Mapping[str, type[PromptLookup] | type[Suffix]] = {"prompt_lookup": PromptLookup, "suffix": Suffix}
_INDICES = {"prompt_lookup": 1, "suffix": 2}  # of ``max_tokens`` tokens each: of running sequences, and of ended ones
assert tuple(_MODEL_FREE) == tuple(_INDICES) == MODEL_FREE

log = logging.getLogger(__name__)


class SpeculationWarning(UserWarning):
    """``speculative_method="auto"`` was given and nothing drafts; the message says why."""


@dataclass(frozen=True, slots=True)
class SpeculativeSetup:
    """The loaded drafters of an engine. Self-speculation is not among them: it has no weights of its own."""

    options: EngineOptions
    backend: Backend
    target: LoadedModel
    loaded: tuple[LoadedDrafter, ...]
    index_tokens: int = MAX_INDEXED_TOKENS  # that each model-free drafter may index

    @classmethod
    def load(
        cls, options: EngineOptions, backend: Backend, target: LoadedModel, draft_plan: DecoderPlan | None
    ) -> SpeculativeSetup:
        """Load the drafters that the options name, and say why none may draft.

        ``draft_plan`` is the draft model, if there is one. Warns if ``auto`` was given and has no effect. Raises ``InvalidOption``
        and ``CheckpointError``.
        """
        loaded = []
        if draft_plan is not None:
            loaded.append(load_draft_model(draft_plan, options, backend, target))
        if options.draft_heads is not None:
            loaded.append(load_draft_heads(options.draft_heads, options, backend, target))
        fitting = available_bytes() // STATE_SHARE // (INDEX_BYTES * sum(_INDICES.values()))
        setup = cls(options, backend, target, tuple(loaded), max(1, min(MAX_INDEXED_TOKENS, fitting)))
        if not setup.enabled and options.speculative_method == "auto":
            remedy = f"To draft all the same, name a drafter, such as {MODEL_FREE[0]}"
            warnings.warn(
                f"speculative_method=auto has no effect: {setup.off_because}. {remedy}.", SpeculationWarning, stacklevel=3
            )
        elif not setup.enabled:
            log.info("speculation is off: %s", setup.off_because)
        return setup

    @property
    def off_because(self) -> str | None:
        """Why nothing drafts, in one sentence; None if drafters do.

        Without a drafter of the user's choice, speculation is on where no draft can change a bit of a logit.
        """
        options = self.options
        if options.speculative_method == "off":
            return "the option speculative_method is off"
        chosen = options.resolved_speculative_method != "auto" or bool(self.loaded) or options.self_draft_layers is not None
        return None if chosen else self.backend.batch_dependence(self.target.dtype)

    @property
    def enabled(self) -> bool:
        """Whether to speculate."""
        return self.off_because is None

    @property
    def block_bytes(self) -> int:
        """The bytes of one block in all KV caches of the drafters."""
        return sum(drafter.block_bytes for drafter in self.loaded)

    @property
    def state_bytes(self) -> int:
        """The bytes that the drafters fill while they run, beside their KV caches."""
        method = self.options.resolved_speculative_method
        model_free = [name for name in MODEL_FREE if self.enabled and method in ("auto", name)]
        indexed = self.index_tokens * sum(_INDICES[name] for name in model_free)
        return indexed * INDEX_BYTES + sum(drafter.state_bytes for drafter in self.loaded)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        """The target's layers, from 0, whose hidden states the drafters read."""
        return tuple(layer for drafter in self.loaded for layer in drafter.aux_layer_indices)

    def measure_costs(self, kv: KvCacheConfig, runner: Runner) -> CostModel | None:
        """Return the costs of the target's steps, or None without speculation. ``kv`` must be free."""
        return CostModel(measure_step_seconds(runner, kv, self.options.max_num_batched_tokens)) if self.enabled else None

    def build_drafter(
        self, num_blocks: int, costs: CostModel | None, self_draft_runner: LayerwiseSelfDraftRunner | None
    ) -> Drafter | None:
        """Return the drafter of the engine, or None without speculation. Raises ``CapacityError``."""
        if costs is None:
            return None
        limit, method = max_draft_tokens(self.options), self.options.resolved_speculative_method
        model_based: dict[str, ModelDrafter] = {loaded.name: loaded.build(num_blocks, costs) for loaded in self.loaded}
        if self_draft_runner is not None:
            model_based["self_speculation"] = SelfSpeculation(self_draft_runner, costs=costs, **limit)
        drafter: Drafter
        if method == "auto":
            model_free = {name: kind(**limit, max_tokens=self.index_tokens) for name, kind in _MODEL_FREE.items()}
            drafter = AutoDrafter(model_free, model_based, costs, num_tokens=self.options.num_speculative_tokens)
        else:
            drafter = _MODEL_FREE[method](**limit, max_tokens=self.index_tokens) if method in _MODEL_FREE else model_based[method]
        return SingleThreadDrafter(drafter) if self.backend.has_own_thread_pool else drafter

    def describe(self) -> Mapping[str, Any]:
        return {
            "speculative_method": self.options.resolved_speculative_method if self.enabled else "off",
            "speculation_off_because": self.off_because,
            "draft_model": next((str(loaded.folder) for loaded in self.loaded if loaded.name == "draft_model"), None),
            "draft_heads": self.options.draft_heads,
            "self_draft_layers": self.options.self_draft_layers,
        }
