"""``Decoder``: the forward pass of all families.

It knows no cache, request or batch, only concatenated tokens.

Shape suffixes: T tokens · R rows · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hasten.layers.attention import AttentionContext, FillKvContext
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.formats.base import WeightFormatFactory
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Embedding, Linear
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.models.spec import DecoderSpec
from hasten.ops.base import Ops


class Decoder(nn.Module):
    """``embed``, ``run`` and ``head`` compose, so that an early exit can run a part of the layers.

    Parameters are allocated but not initialised, and do not require gradients until ``requires_grad_`` is called.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        formats: WeightFormatFactory | None = None,
    ) -> None:
        """``dtype`` is that of the hidden state. Without ``formats`` all matrices are dense in this dtype."""
        super().__init__()
        self.spec, self.ops, self.dtype = spec, ops, dtype
        size = spec.hidden_size
        layer_context = LayerContext(ops, formats or DenseFormatFactory(ops, dtype, device), dtype, device)
        self.embedding = Embedding(layer_context.formats.lm_head(size, spec.vocab_size))
        self.positions = Embedding(layer_context.formats.table(spec.max_positions, size)) if spec.learned_positions else None
        self.layers = nn.ModuleList(DecoderLayer(layer, spec.norm, size, layer_context) for layer in spec.layers)
        self.norm = Norm(spec.norm, size, layer_context)
        tied = spec.tie_word_embeddings
        lm_head_format = self.embedding.format if tied else layer_context.formats.lm_head(size, spec.vocab_size)
        self.lm_head = Linear(lm_head_format, bias=False, layer_context=layer_context)
        self.rotary = RotaryTables(spec.rotary_specs, device)

    def embed(self, ids_T: Tensor) -> Tensor:
        """Return token embeddings [T, E]. ``run`` adds learned positions."""
        embedded_TE: Tensor = self.embedding(ids_T)
        return embedded_TE

    def run(
        self,
        hidden_TE: Tensor,
        positions_T: Tensor,
        context: AttentionContext,
        start: int = 0,
        stop: int | None = None,
        hooks: Mapping[int, Callable[[Tensor], None]] | None = None,
    ) -> Tensor:
        """Run layers ``[start, stop)``; ``stop`` None runs all from ``start``. [T, E]

        A range that begins at 0 adds learned positions. ``hooks[i]`` is called with the hidden state after layer i.
        """
        stop = self.spec.num_layers if stop is None else stop
        assert 0 <= start <= stop <= self.spec.num_layers, (start, stop, self.spec.num_layers)
        if start == 0 and self.positions is not None:
            hidden_TE = hidden_TE + self.positions(positions_T)
        for index in range(start, stop):
            hidden_TE = self.layers[index](hidden_TE, index, context)
            if hooks is not None and index in hooks:
                hooks[index](hidden_TE)
        return hidden_TE

    def fill_kv(self, hidden_TE: Tensor, context: FillKvContext, start: int, stop: int) -> None:
        """Store keys and values of layers ``[start, stop)`` from the hidden states of exited tokens."""
        for index in range(start, stop):
            layer = self.layers[index]
            assert isinstance(layer, DecoderLayer)
            layer.fill_kv(hidden_TE, index, context)

    def head(self, hidden_RE: Tensor, lm_head: Linear | None = None) -> Tensor:
        """Apply the final norm and ``lm_head``, the decoder's by default. Logits [R, V], float32."""
        logits_RV: Tensor = (self.lm_head if lm_head is None else lm_head)(self.norm(hidden_RE))
        return logits_RV.float()
