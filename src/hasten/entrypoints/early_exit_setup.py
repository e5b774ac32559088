"""``EarlyExitSetup``: what an engine knows of leaving early, and every request's rule made definite before the engine hears of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.checkpoints.formats.exits import ExitsCheckpoint, read_exits
from hasten.checkpoints.hub import resolve
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption, InvalidRequest
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.models.decoder import Decoder
from hasten.models.load import LoadedModel
from hasten.runners.backends.base import Backend
from hasten.runners.early_exit_runner import EarlyExitRunner
from hasten.runners.layerwise import LayerwiseRunner
from hasten.runners.self_draft_runner import SelfDraftLayerwiseRunner
from hasten.speculative.drafters.self_speculation import best_depth

TOLERANCE = 0.01  # of a request that names neither threshold nor tolerance


@dataclass(frozen=True, slots=True)
class EarlyExitSetup:
    decoder: Decoder
    guess: bool = False  # whether first layers may guess for all of them
    checkpoint: ExitsCheckpoint | None = None
    draft_lm_head: Linear | None = None  # the part of the vocabulary that first layers guess from; None: all of it

    @classmethod
    def load(cls, options: EngineOptions, backend: Backend, target: LoadedModel, *, guess: bool) -> EarlyExitSetup:
        """Exits are quantised as the model is, and what only guesses as what guesses is. ``guess``: whether guesses are allowed.

        Raises ``CheckpointError`` for exits of another model, with both numbers, and ``InvalidOption`` for a ``draft_quantization``
        that nothing heeds.
        """
        guess = guess and options.allows_self_drafting
        if options.exits is None:
            return cls(target.decoder, guess)
        spec, decoder = target.spec, target.decoder
        layer_context = LayerContext(backend.ops, backend.formats(target.dtype), target.dtype)
        checkpoint = read_exits(
            resolve(options.exits, None, quiet=not options.show_progress),
            hidden_size=spec.hidden_size,
            num_layers=spec.num_layers,
            vocab_size=spec.vocab_size,
            layer_context=layer_context,
        )
        words = None
        if guess and checkpoint.draft_ids is not None:
            formats = backend.draft_formats(target.dtype)
            words = decoder.lm_head.slice_rows(checkpoint.draft_ids, LayerContext(backend.ops, formats, target.dtype))
        elif options.draft_quantization != "auto" and options.draft_model is None and options.draft_heads is None:
            raise InvalidOption(
                "there is nothing to quantise for guesses: these exits guess from the whole vocabulary, or not at all",
                got=f"draft_quantization={options.draft_quantization!r}, exits={options.exits!r}, speculative_method={options.speculative_method!r}",
                remedy="Leave draft_quantization out, train exits with --draft-vocab, or ask for speculative_method='self_speculation'",
            )
        return cls(decoder, guess, checkpoint, words)

    def runner(self, runner: LayerwiseRunner, *, own_threads: bool) -> EarlyExitRunner:
        if self.checkpoint is None:
            return EarlyExitRunner(runner, own_threads=own_threads)
        layers = self.checkpoint.token_layers
        return EarlyExitRunner(runner, self.checkpoint.exits, () if layers is None else layers.tolist(), own_threads=own_threads)

    def shallow(self, runner: LayerwiseRunner, kv: KvCacheManager, options: EngineOptions) -> SelfDraftLayerwiseRunner | None:
        """The layers that guess for the whole model, if any do. Raises ``InvalidOption`` for more layers than it has."""
        if not self.guess or (self.checkpoint is None and options.self_draft_layers is None):
            return None
        depth, layers = options.self_draft_layers, () if self.checkpoint is None else self.checkpoint.exits.spec.layers
        if depth is None:
            depth = self._best_depth(layers)
        if depth >= runner.num_layers:
            raise InvalidOption(
                "fewer layers than the model has can guess for it",
                got=f"self_draft_layers={depth}",
                allowed=f"1 to {runner.num_layers - 1}",
            )
        exit_ = self.checkpoint.exits.at(depth) if self.checkpoint is not None and depth in layers else None

        def read(state_RE: Tensor) -> Tensor:
            state_RE = state_RE if exit_ is None else exit_.tuned_lens(state_RE)
            if self.draft_lm_head is None:
                return runner.head(state_RE)
            return self.decoder.head(state_RE.to(self.decoder.dtype), self.draft_lm_head)

        return SelfDraftLayerwiseRunner(runner, kv, read, depth, None if self.checkpoint is None else self.checkpoint.draft_ids)

    def _best_depth(self, layers: Sequence[int]) -> int:
        """By how often exits are right and how many bits a guess reads; where that was not measured, about half of them."""
        agreements = None if self.checkpoint is None else self.checkpoint.agreements
        if agreements is None:
            return min(layers, key=lambda layer: abs(layer - self.decoder.spec.num_layers / 2))
        vocabulary = self.decoder.lm_head
        layer_sizes = [sum(_size(part) for part in layer.modules()) for layer in self.decoder.layers]
        whole = sum(layer_sizes) + _size(vocabulary)
        words = _size(self.draft_lm_head or vocabulary)
        return best_depth(dict(zip(layers, agreements, strict=True)), lambda depth: (sum(layer_sizes[:depth]) + words) / whole)

    def resolve(self, params: SamplingParams, prompt: Sequence[int]) -> tuple[SamplingParams, int | None]:
        """The settings with a threshold where their rule has one, and how many layers compute all tokens, if that is known now.

        Raises ``InvalidRequest`` for what this engine cannot do.
        """
        rule = params.exit_rule
        if rule == "none":
            return params, None
        if rule == "fixed":
            return params, self._layer(params.exit_layer)
        if self.checkpoint is None:
            raise InvalidRequest(
                "this engine has no trained exits",
                got=f"exit_rule={rule!r}",
                allowed="none, fixed",
                remedy="Load the model with exits=..., or train some: hasten train exits",
            )
        table = {"token_table": self.checkpoint.token_layers, "prompt_hash": self.checkpoint.prompt_hash_table}
        if rule in table and table[rule] is None:
            raise InvalidRequest("the exits of this engine have no table for this rule", got=f"exit_rule={rule!r}")
        if rule == "prompt_hash":
            assert self.checkpoint.prompt_hash_table is not None
            with torch.inference_mode():
                embedded_TE = self.decoder.embed(torch.tensor(prompt)).float()
            return params, self.checkpoint.prompt_hash_table.layer(embedded_TE)
        if rule == "token_table" or params.exit_threshold is not None:
            return params, None
        return params.replace(exit_threshold=self._threshold(params), exit_tolerance=None), None

    def _layer(self, layer: int | None) -> int:
        assert layer is not None
        most = self.decoder.spec.num_layers
        if layer > most:
            raise InvalidRequest("the model has fewer layers than that", got=f"exit_layer={layer}", allowed=f"1 to {most}")
        return layer

    def _threshold(self, params: SamplingParams) -> float:
        """The calibrated one."""
        assert self.checkpoint is not None
        tolerance = TOLERANCE if params.exit_tolerance is None else params.exit_tolerance
        found = self.checkpoint.calibration(params.exit_rule, tolerance)
        if found is None:
            known = sorted(each.tolerance for each in self.checkpoint.calibrations if each.rule == params.exit_rule)
            raise InvalidRequest(
                f"the exits of this engine are not calibrated for this tolerance of {params.exit_rule}",
                got=f"exit_tolerance={tolerance:g}",
                allowed=", ".join(f"{value:g}" for value in known) or "none: they were never calibrated",
                remedy="Take one of these, or give an exit_threshold",
            )
        return found.threshold


def _size(part: nn.Module) -> float:
    """Bits of a matrix."""
    return part.format.in_features * part.format.out_features * part.format.bits if isinstance(part, Linear) else 0
