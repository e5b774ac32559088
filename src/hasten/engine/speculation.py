"""From the options to a drafter: what it needs is loaded before the KV pool is sized, and built once its size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hasten.checkpoints.formats.draft_ids import read_draft_ids
from hasten.checkpoints.hub import resolve
from hasten.core.errors import InvalidOption
from hasten.core.plan import Runner
from hasten.decoding.drafters import TEXTUAL
from hasten.decoding.drafters.auto import Auto
from hasten.decoding.drafters.base import Drafter, PacedDrafter
from hasten.decoding.drafters.draft_model import DraftModel
from hasten.decoding.drafters.prompt_lookup import PromptLookup
from hasten.decoding.drafters.self_speculation import SelfSpeculation
from hasten.decoding.drafters.suffix import Suffix
from hasten.decoding.few_words import FewWords
from hasten.decoding.step_costs import StepCosts
from hasten.engine.alone import Alone
from hasten.engine.backends.base import Backend
from hasten.engine.calibration import measure_steps
from hasten.engine.draft_heads import Heads, load_heads
from hasten.engine.fit import Fit
from hasten.engine.groups import kv_groups
from hasten.engine.options import EngineOptions
from hasten.engine.shallow import Shallow
from hasten.kv.space import KvSpace
from hasten.layers.build import Build
from hasten.models.load import LoadedModel, check_vocabulary, load_decoder
from hasten.sampling.sampler import Sampler

_TEXTUAL: Mapping[str, type[PromptLookup] | type[Suffix]] = {"prompt_lookup": PromptLookup, "suffix": Suffix}
assert tuple(_TEXTUAL) == TEXTUAL


@dataclass(frozen=True, slots=True)
class Speculation:
    """What guesses, loaded."""

    options: EngineOptions
    backend: Backend
    target: LoadedModel
    draft: LoadedModel | None = None
    draft_ids: Tensor | None = None  # the tokens that it guesses from; None: all
    heads: Heads | None = None

    @classmethod
    def load(cls, options: EngineOptions, backend: Backend, target: LoadedModel) -> Speculation:
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
    def taps(self) -> tuple[int, ...]:
        """The target's layers whose hidden states are wanted."""
        return () if self.heads is None else self.heads.taps

    def costs(self, fit: Fit, runner: Runner) -> StepCosts | None:
        """What a step takes, if anything guesses. ``runner`` is the target's; nobody uses its pool yet."""
        options = self.options
        if options.speculation == "off" or not self.allowed:
            return None
        groups = kv_groups(self.target.spec)
        return StepCosts(measure_steps(runner, groups, fit.num_blocks, options.block_size, options.max_num_batched_tokens))

    def drafter(self, fit: Fit, costs: StepCosts | None, shallow: Shallow | None) -> Drafter | None:
        """``shallow``: the target's layers that guess, if any do. Raises ``CapacityError``."""
        chosen = None if costs is None else self._drafter(fit, costs, shallow)
        return Alone(chosen) if chosen is not None and self.backend.own_threads else chosen

    def _drafter(self, fit: Fit, costs: StepCosts, shallow: Shallow | None) -> Drafter | None:
        chosen = self.options.speculation
        limit = {} if self.options.num_draft_tokens is None else {"num_tokens": self.options.num_draft_tokens}
        paced: dict[str, PacedDrafter] = {}
        if self.draft is not None:
            paced["draft_model"] = self._draft_model(self.draft, fit, costs, limit)
        if self.heads is not None:
            paced[self.heads.name] = self.heads.drafter(costs, fit.num_blocks, self.options.block_size, limit)
        if shallow is not None:
            paced["self_speculation"] = SelfSpeculation(shallow, costs=costs, **limit)
        if chosen == "auto":
            textual = {name: kind(**limit) for name, kind in _TEXTUAL.items()}
            return Auto(textual, paced, costs, num_tokens=self.options.num_draft_tokens)
        return _TEXTUAL[chosen](**limit) if chosen in _TEXTUAL else paced.get(chosen)

    def describe(self) -> Mapping[str, Any]:
        return {
            "speculation": self.options.speculation if self.allowed else "off",
            "draft_model": str(self.draft.folder) if self.draft else None,
            "draft_heads": self.options.draft_heads,
            "draft_layers": self.options.draft_layers,
        }

    @property
    def allowed(self) -> bool:
        """Where a guess could change an output by a rounding, somebody must have asked for guesses."""
        given = self.draft is not None or self.heads is not None or self.options.draft_layers is not None
        asked = self.options.speculation != "auto" or given
        return asked or self.backend.same_bits(self.target.dtype)

    def _draft_model(self, model: LoadedModel, fit: Fit, costs: StepCosts, limit: Mapping[str, int]) -> DraftModel:
        """It has as many blocks as the target."""
        groups, size, max_step = kv_groups(model.spec), self.options.block_size, self.options.max_num_batched_tokens
        runner: Runner = self.backend.runner(model.decoder, groups, fit.num_blocks, size, model.dtype, max_step)
        words = None if self.draft_ids is None else FewWords(self.draft_ids, model.spec.vocab_size)
        space = KvSpace(groups, fit.num_blocks, size, retain=self.options.prefix_caching)
        sampler = Sampler(self.backend.chooser())
        bounds = {"max_step": max_step, "max_positions": model.spec.max_positions, **limit}
        return DraftModel(runner, space, sampler, costs=costs, words=words, **bounds)


def _heads(options: EngineOptions, backend: Backend, target: LoadedModel) -> Heads | None:
    if options.draft_heads is None:
        return None
    heads = load_heads(resolve(options.draft_heads, None, quiet=not options.show_progress), backend, target)
    if options.speculation not in ("auto", heads.name):
        raise InvalidOption(
            f"the draft heads in {options.draft_heads} are of another kind",
            got=heads.name,
            allowed=options.speculation,
            remedy=f"Use speculation={heads.name!r}, or heads of the kind that you want",
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
        build = Build(backend.ops, backend.draft_formats(model.dtype), model.dtype)
        model.decoder.vocabulary = model.decoder.vocabulary.some_rows(ids, build)
    return model, ids
