"""``Decoder``: every family's forward pass. It knows no cache, no request and no batch: only tokens end to end.

Shape suffixes: T tokens · R rows · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hasten.layers.context import AttentionContext
from hasten.layers.embedding import Embedding
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

    def __init__(self, spec: DecoderSpec, ops: Ops, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        size = spec.hidden_size
        self.embedding = Embedding(spec.vocab_size, size, dtype, device)
        self.positions = Embedding(spec.max_positions, size, dtype, device) if spec.learned_positions else None
        self.layers = nn.ModuleList(Layer(layer, spec.norm, size, ops=ops, dtype=dtype, device=device) for layer in spec.layers)
        self.norm = Norm(spec.norm, size, ops, dtype, device)
        shared = self.embedding.weight if spec.tied else None
        self.vocabulary = Linear(size, spec.vocab_size, bias=False, ops=ops, dtype=dtype, device=device, shared=shared)
        self.rotary = RotaryTables(spec.rotary_specs, device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of the hidden state."""
        return self.embedding.weight.dtype

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

    def head(self, hidden_RE: Tensor) -> Tensor:
        """Final norm and vocabulary projection. Logits [R, V], float32."""
        logits_RV: Tensor = self.vocabulary(self.norm(hidden_RE))
        return logits_RV.float()
