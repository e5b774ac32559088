"""From the options to a drafter: what it needs is loaded before the KV pool is sized, and built once its size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hasten.checkpoints.formats.draft_ids import read_draft_ids
from hasten.checkpoints.hub import resolve
from hasten.core.engine_options import MODEL_FREE, EngineOptions
from hasten.core.errors import InvalidOption
from hasten.core.plan import Runner
from hasten.engine.kv_cache_sizing import KvCacheSizing
from hasten.engine.kv_groups import kv_groups
from hasten.entrypoints.draft_heads import DraftHeads, load_draft_heads
from hasten.kv.cache_manager import KvCacheManager
from hasten.layers.layer_context import LayerContext
from hasten.models.load import LoadedModel, check_vocabulary, load_decoder
from hasten.runners.backends.base import Backend
from hasten.runners.self_draft_runner import SelfDraftLayerwiseRunner
from hasten.runners.single_thread import SingleThreadDrafter
from hasten.runners.step_timing import measure_step_seconds
from hasten.sampling.sampler import Sampler
from hasten.speculative.draft_vocabulary import DraftVocabulary
from hasten.speculative.drafters.base import Drafter, ModelDrafter
from hasten.speculative.drafters.draft_model import DraftModel
from hasten.speculative.drafters.prompt_lookup import PromptLookup
from hasten.speculative.drafters.self_speculation import SelfSpeculation
from hasten.speculative.drafters.suffix import Suffix
from hasten.speculative.policy import Auto
from hasten.speculative.step_costs import StepCosts

_MODEL_FREE: Mapping[str, type[PromptLookup] | type[Suffix]] = {"prompt_lookup": PromptLookup, "suffix": Suffix}
assert tuple(_MODEL_FREE) == MODEL_FREE


@dataclass(frozen=True, slots=True)
class SpeculativeSetup:
    """What guesses, loaded."""

    options: EngineOptions
    backend: Backend
    target: LoadedModel
    draft: LoadedModel | None = None
    draft_ids: Tensor | None = None  # the tokens that it guesses from; None: all
    heads: DraftHeads | None = None

    @classmethod
    def load(cls, options: EngineOptions, backend: Backend, target: LoadedModel) -> SpeculativeSetup:
        """Raises ``InvalidOption`` for a draft model of another vocabulary, and ``CheckpointError`` where files are wrong."""
        draft, draft_ids = _draft_model(options, backend, target)
        return cls(options, backend, target, draft, draft_ids, _heads(options, backend, target))

    @property
    def block_bytes(self) -> int:
        """Of a block of the KV cache, beside those of the target."""
        size, total = self.options.block_size, 0
        if self.draft is not None:
            total += self.backend.block_bytes(kv_groups(self.draft.spec), size, self.draft.dtype)
        if self.heads is not None:
            total += self.heads.block_bytes(size)
        return total

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        """The target's layers whose hidden states are wanted."""
        return () if self.heads is None else self.heads.aux_layer_indices

    def costs(self, fit: KvCacheSizing, runner: Runner) -> StepCosts | None:
        """What a step takes, if anything guesses. ``runner`` is the target's; nobody uses its pool yet."""
        options = self.options
        if options.speculative_method == "off" or not self.allowed:
            return None
        groups = kv_groups(self.target.spec)
        return StepCosts(measure_step_seconds(runner, groups, fit.num_blocks, options.block_size, options.max_num_batched_tokens))

    def drafter(self, fit: KvCacheSizing, costs: StepCosts | None, shallow: SelfDraftLayerwiseRunner | None) -> Drafter | None:
        """``shallow``: the target's layers that guess, if any do. Raises ``CapacityError``."""
        chosen = None if costs is None else self._drafter(fit, costs, shallow)
        return SingleThreadDrafter(chosen) if chosen is not None and self.backend.own_threads else chosen

    def _drafter(self, fit: KvCacheSizing, costs: StepCosts, shallow: SelfDraftLayerwiseRunner | None) -> Drafter | None:
        chosen = self.options.speculative_method
        limit = {} if self.options.num_speculative_tokens is None else {"num_tokens": self.options.num_speculative_tokens}
        paced: dict[str, ModelDrafter] = {}
        if self.draft is not None:
            paced["draft_model"] = self._draft_model(self.draft, fit, costs, limit)
        if self.heads is not None:
            paced[self.heads.name] = self.heads.drafter(costs, fit.num_blocks, self.options.block_size, limit)
        if shallow is not None:
            paced["self_speculation"] = SelfSpeculation(shallow, costs=costs, **limit)
        if chosen == "auto":
            textual = {name: kind(**limit) for name, kind in _MODEL_FREE.items()}
            return Auto(textual, paced, costs, num_tokens=self.options.num_speculative_tokens)
        return _MODEL_FREE[chosen](**limit) if chosen in _MODEL_FREE else paced.get(chosen)

    def describe(self) -> Mapping[str, Any]:
        return {
            "speculative_method": self.options.speculative_method if self.allowed else "off",
            "draft_model": str(self.draft.folder) if self.draft else None,
            "draft_heads": self.options.draft_heads,
            "self_draft_layers": self.options.self_draft_layers,
        }

    @property
    def allowed(self) -> bool:
        """Where a guess could change an output by a rounding, somebody must have asked for guesses."""
        given = self.draft is not None or self.heads is not None or self.options.self_draft_layers is not None
        asked = self.options.speculative_method != "auto" or given
        return asked or self.backend.batch_invariant(self.target.dtype)

    def _draft_model(self, model: LoadedModel, fit: KvCacheSizing, costs: StepCosts, limit: Mapping[str, int]) -> DraftModel:
        """It has as many blocks as the target."""
        groups, size, max_step = kv_groups(model.spec), self.options.block_size, self.options.max_num_batched_tokens
        runner: Runner = self.backend.runner(model.decoder, groups, fit.num_blocks, size, model.dtype, max_step)
        words = None if self.draft_ids is None else DraftVocabulary(self.draft_ids, model.spec.vocab_size)
        space = KvCacheManager(groups, fit.num_blocks, size, keep_cached=self.options.prefix_caching)
        sampler = Sampler(self.backend.selector())
        bounds = {"max_step": max_step, "max_positions": model.spec.max_positions, **limit}
        return DraftModel(runner, space, sampler, costs=costs, words=words, **bounds)


def _heads(options: EngineOptions, backend: Backend, target: LoadedModel) -> DraftHeads | None:
    if options.draft_heads is None:
        return None
    heads = load_draft_heads(resolve(options.draft_heads, None, quiet=not options.show_progress), backend, target)
    if options.speculative_method not in ("auto", heads.name):
        raise InvalidOption(
            f"the draft heads in {options.draft_heads} are of another kind",
            got=heads.name,
            allowed=options.speculative_method,
            remedy=f"Use speculative_method={heads.name!r}, or heads of the kind that you want",
        )
    return heads


def _draft_model(options: EngineOptions, backend: Backend, target: LoadedModel) -> tuple[LoadedModel | None, Tensor | None]:
    """The model and the tokens that it guesses from; its vocabulary projection has no others then."""
    if options.draft_model is None:
        return None, None
    folder = resolve(options.draft_model, None, quiet=not options.show_progress)
    model = load_decoder(folder, dtype=options.dtype, ops=backend.ops, formats=backend.draft_formats)
    remedy = "Take a smaller model of the same family, or train one: hasten train draft"
    check_vocabulary(model, options.draft_model, target.spec.vocab_size, remedy)
    ids = read_draft_ids(folder, model.spec.vocab_size)
    if ids is not None:
        layer_context = LayerContext(backend.ops, backend.draft_formats(model.dtype), model.dtype)
        model.decoder.lm_head = model.decoder.lm_head.slice_rows(ids, layer_context)
    return model, ids
