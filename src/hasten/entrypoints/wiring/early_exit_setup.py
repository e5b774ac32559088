"""``EarlyExitSetup``: from the options to the early-exit runner and the self-draft runner."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hasten.checkpoints.formats.exits import ExitsCheckpoint, read_exits
from hasten.checkpoints.hub import resolve_heads
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.kv.cache_manager import KvCacheManager
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.models.decoder import Decoder
from hasten.models.load import LoadedModel
from hasten.runners.backends.base import Backend
from hasten.runners.base import LayerwiseRunner
from hasten.runners.early_exit_runner import EarlyExitRunner
from hasten.runners.self_draft_runner import LayerwiseSelfDraftRunner
from hasten.speculative.drafters.self_speculation import best_exit_layer


@dataclass(frozen=True, slots=True)
class EarlyExitSetup:
    decoder: Decoder
    options: EngineOptions
    self_drafting: bool  # whether the first layers may draft
    checkpoint: ExitsCheckpoint | None = None  # the trained exits, if there are any
    draft_lm_head: Linear | None = None  # the lm_head rows of the draft vocabulary; None: the full lm_head drafts

    @classmethod
    def load(cls, options: EngineOptions, backend: Backend, target: LoadedModel, *, speculation: bool) -> EarlyExitSetup:
        """Load the exits that the options name.

        Exit heads are quantised as the target is, the draft lm_head as drafters are. ``speculation``: whether it is enabled. Raises
        ``CheckpointError`` for exits of another model, and ``InvalidOption`` if ``draft_quantization`` has no effect.
        """
        self_drafting = speculation and options.allows_self_drafting
        if options.exits is None:
            return cls(target.decoder, options, self_drafting)
        spec, decoder = target.spec, target.decoder
        checkpoint = read_exits(
            resolve_heads(options.exits, quiet=not options.show_progress),
            hidden_size=spec.hidden_size,
            num_layers=spec.num_layers,
            vocab_size=spec.vocab_size,
            layer_context=LayerContext(backend.ops, backend.formats(target.dtype), target.dtype),
        )
        draft_lm_head = None
        if self_drafting and checkpoint.draft_ids is not None:
            draft_context = LayerContext(backend.ops, backend.draft_formats(target.dtype), target.dtype)
            draft_lm_head = decoder.lm_head.slice_rows(checkpoint.draft_ids, draft_context)
        elif options.draft_quantization != "auto" and options.draft_model is None and options.draft_heads is None:
            raise InvalidOption(
                "draft_quantization has no draft weights to quantise: these exits draft with the full lm_head, or not at all",
                got=f"draft_quantization={options.draft_quantization!r}, exits={options.exits!r}, "
                f"speculative_method={options.speculative_method!r}",
                remedy="Leave draft_quantization out, train exits with --draft-vocab, or set speculative_method='self_speculation'",
            )
        return cls(decoder, options, self_drafting, checkpoint, draft_lm_head)

    def build_runner(
        self, runner: LayerwiseRunner, self_draft_runner: LayerwiseSelfDraftRunner | None, *, has_own_thread_pool: bool
    ) -> EarlyExitRunner:
        """Return the runner of the engine."""
        token_layers = None if self.checkpoint is None else self.checkpoint.token_layers
        return EarlyExitRunner(
            runner,
            None if self.checkpoint is None else self.checkpoint.exits,
            () if token_layers is None else token_layers.tolist(),
            run_all_layers=None if self_draft_runner is None else self_draft_runner.run,
            has_own_thread_pool=has_own_thread_pool,
        )

    def build_self_draft_runner(self, runner: LayerwiseRunner, kv: KvCacheManager) -> LayerwiseSelfDraftRunner | None:
        """Return the runner of the layers that draft, or None without self-drafting. ``kv`` is the target's.

        Raises ``InvalidOption`` if ``self_draft_layers`` is not below the number of layers.
        """
        num_layers = self.options.self_draft_layers
        if not self.self_drafting or (self.checkpoint is None and num_layers is None):
            return None
        if num_layers is None:
            num_layers = self._best_exit_layer()
        if num_layers >= runner.num_layers:
            raise InvalidOption(
                "self-speculation drafts with fewer layers than the model has",
                got=f"self_draft_layers={num_layers}",
                allowed=f"1 to {runner.num_layers - 1}",
            )
        exits = None if self.checkpoint is None else self.checkpoint.exits
        exit_head = exits.at(num_layers) if exits is not None and num_layers in exits.spec.layers else None

        def draft_head(hidden_RE: Tensor) -> Tensor:
            hidden_RE = hidden_RE if exit_head is None else exit_head.tuned_lens(hidden_RE)
            if self.draft_lm_head is None:
                return runner.head(hidden_RE)
            return self.decoder.head(hidden_RE.to(self.decoder.dtype), self.draft_lm_head)

        draft_ids = None if self.checkpoint is None else self.checkpoint.draft_ids
        return LayerwiseSelfDraftRunner(runner, kv, draft_head, num_layers, draft_ids)

    def _best_exit_layer(self) -> int:
        """Return the exit that should draft fastest; the middle one if its agreement was not measured."""
        assert self.checkpoint is not None
        layers, agreement = self.checkpoint.exits.spec.layers, self.checkpoint.agreements
        if agreement is None:
            return min(layers, key=lambda layer: abs(layer - self.decoder.spec.num_layers / 2))
        layer_bits = [sum(_num_bits(part) for part in layer.modules()) for layer in self.decoder.layers]
        step_bits = sum(layer_bits) + _num_bits(self.decoder.lm_head)
        head_bits = _num_bits(self.draft_lm_head or self.decoder.lm_head)
        return best_exit_layer(
            dict(zip(layers, agreement, strict=True)), lambda layer: (sum(layer_bits[:layer]) + head_bits) / step_bits
        )


def _num_bits(part: nn.Module) -> float:
    """Return the size of a matrix; 0 for all other modules."""
    return part.format.in_features * part.format.out_features * part.format.bits if isinstance(part, Linear) else 0
