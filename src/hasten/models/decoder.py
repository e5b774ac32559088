"""``Decoder``: every family's forward pass. It knows no cache, no request and no batch: only tokens end to end.

Shape suffixes: T tokens · R rows · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hasten.layers.build import Build
from hasten.layers.context import AttentionContext, FillContext
from hasten.layers.embedding import Embedding
from hasten.layers.formats.base import Formats
from hasten.layers.formats.dense import DenseFormats
from hasten.layers.layer import Layer
from hasten.layers.linear import Linear
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.models.spec import DecoderSpec
from hasten.ops.base import Ops


class Decoder(nn.Module):
    """Parameters are allocated, not initialised, and do not require gradients until someone asks for them.

    ``embed``, ``run`` and ``head`` compose: a pipeline stage, an early exit or a soft prompt uses a part of them.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        formats: Formats | None = None,
    ) -> None:
        """``dtype`` is that of the hidden state. Without ``formats`` all matrices are dense, in the same dtype."""
        super().__init__()
        self.spec, self.ops, self.dtype = spec, ops, dtype
        size = spec.hidden_size
        build = Build(ops, formats or DenseFormats(ops, dtype, device), dtype, device)
        self.embedding = Embedding(build.formats.vocabulary(size, spec.vocab_size))
        self.positions = Embedding(build.formats.table(spec.max_positions, size)) if spec.learned_positions else None
        self.layers = nn.ModuleList(Layer(layer, spec.norm, size, build) for layer in spec.layers)
        self.norm = Norm(spec.norm, size, build)
        head = self.embedding.format if spec.tied else build.formats.vocabulary(size, spec.vocab_size)
        self.vocabulary = Linear(head, bias=False, build=build)
        self.rotary = RotaryTables(spec.rotary_specs, device)

    def embed(self, ids_T: Tensor) -> Tensor:
        """Token embeddings [T, E]. Positions come with the first layer."""
        embedded: Tensor = self.embedding(ids_T)
        return embedded

    def run(
        self,
        hidden_TE: Tensor,
        positions_T: Tensor,
        context: AttentionContext,
        start: int = 0,
        stop: int | None = None,
        taps: Mapping[int, Callable[[Tensor], None]] | None = None,
    ) -> Tensor:
        """Layers ``[start, stop)``, all that follow when ``stop`` is None. [T, E]

        A range that begins at 0 adds learned positions. ``taps[i]`` is called with the hidden state after layer i.
        """
        stop = self.spec.num_layers if stop is None else stop
        assert 0 <= start <= stop <= self.spec.num_layers, (start, stop, self.spec.num_layers)
        if start == 0 and self.positions is not None:
            hidden_TE = hidden_TE + self.positions(positions_T)
        for index in range(start, stop):
            hidden_TE = self.layers[index](hidden_TE, index, context)
            if taps is not None and index in taps:
                taps[index](hidden_TE)
        return hidden_TE

    def fill(self, hidden_TE: Tensor, context: FillContext, start: int, stop: int) -> None:
        """Keys and values of layers ``[start, stop)`` for tokens that have left the model: in all of them from their last state."""
        for index in range(start, stop):
            layer = self.layers[index]
            assert isinstance(layer, Layer)
            layer.fill(hidden_TE, index, context)

    def head(self, hidden_RE: Tensor, vocabulary: Linear | None = None) -> Tensor:
        """Final norm and vocabulary projection, or a part of it. Logits [R, V], float32."""
        logits_RV: Tensor = (self.vocabulary if vocabulary is None else vocabulary)(self.norm(hidden_RE))
        return logits_RV.float()
