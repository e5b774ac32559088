"""From the options to a drafter: what it needs is loaded before the KV pool is sized, and built once its size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.core.errors import InvalidOption
from hasten.decoding.drafters.base import Drafter
from hasten.decoding.drafters.draft_model import DraftModel
from hasten.decoding.drafters.prompt_lookup import PromptLookup
from hasten.decoding.drafters.suffix import Suffix
from hasten.engine.backends.base import Backend
from hasten.engine.fit import Fit
from hasten.engine.groups import kv_groups
from hasten.engine.options import EngineOptions
from hasten.kv.space import KvSpace
from hasten.models.load import LoadedModel, load_decoder
from hasten.models.spec import DecoderSpec
from hasten.sampling.sampler import Sampler

# Drafters that need nothing but the text.
TEXTUAL: dict[str | None, type[PromptLookup] | type[Suffix]] = {"prompt_lookup": PromptLookup, "suffix": Suffix}


@dataclass(frozen=True, slots=True)
class Speculation:
    options: EngineOptions
    backend: Backend
    model: LoadedModel | None = None  # the draft model

    @classmethod
    def load(cls, options: EngineOptions, backend: Backend, target: DecoderSpec) -> Speculation:
        """Raises ``InvalidOption`` for a draft model of another vocabulary, and as ``load_decoder`` does."""
        if options.draft_model is None:
            return cls(options, backend)
        folder = resolve(options.draft_model, None, quiet=not options.show_progress)
        model = load_decoder(folder, dtype=options.dtype, ops=backend.ops, formats=backend.formats)
        if model.spec.vocab_size != target.vocab_size:
            raise InvalidOption(
                "the draft model has another vocabulary than the model",
                got=f"{model.spec.vocab_size} tokens in {options.draft_model}",
                allowed=f"{target.vocab_size} tokens",
                remedy="Take a smaller model of the same family, or train one",
            )
        return cls(options, backend, model)

    @property
    def block_bytes(self) -> int:
        """Of a block of the KV cache, beside those of the target."""
        if self.model is None:
            return 0
        return self.backend.block_bytes(kv_groups(self.model.spec), self.options.block_size, self.model.dtype)

    def drafter(self, fit: Fit) -> Drafter | None:
        """The draft model has as many blocks as the target. Raises ``CapacityError``."""
        options = self.options
        limit = {} if options.num_draft_tokens is None else {"num_tokens": options.num_draft_tokens}
        if options.speculation in TEXTUAL:
            return TEXTUAL[options.speculation](**limit)
        if self.model is None:
            return None
        groups, size, max_step = kv_groups(self.model.spec), options.block_size, options.max_num_batched_tokens
        runner = self.backend.runner(self.model.decoder, groups, fit.num_blocks, size, self.model.dtype, max_step)
        space = KvSpace(groups, fit.num_blocks, size, retain=options.prefix_caching)
        sampler = Sampler(self.backend.chooser())
        return DraftModel(runner, space, sampler, **limit, max_step=max_step, max_positions=self.model.spec.max_positions)

    def describe(self) -> Mapping[str, Any]:
        return {"speculation": self.options.speculation, "draft_model": str(self.model.folder) if self.model else None}
