"""``Backend``: how matrices are stored, how large the KV pool's blocks are, who runs the steps and who chooses the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from hasten.kv.group import KvGroup
from hasten.layers.eagle import EagleHead
from hasten.layers.formats.base import WeightFormatFactory
from hasten.models.decoder import Decoder
from hasten.ops.base import Ops
from hasten.runners.layerwise import LayerwiseRunner
from hasten.sampling.token_selector import TokenSelector
from hasten.speculative.drafters.eagle import EagleRunner


class Backend(Protocol):
    @property
    def ops(self) -> Ops:
        """For what is computed outside of steps."""
        ...

    def formats(self, dtype: torch.dtype) -> WeightFormatFactory:
        """The matrices of a decoder whose checkpoint is read as ``dtype``."""
        ...

    def draft_formats(self, dtype: torch.dtype) -> WeightFormatFactory:
        """The matrices of a draft model or of heads, which may be coarser: no output depends on them."""
        ...

    def block_bytes(self, groups: Sequence[KvGroup], block_size: int, dtype: torch.dtype) -> int:
        """Of one KV block of every group."""
        ...

    def runner(
        self,
        decoder: Decoder,
        groups: Sequence[KvGroup],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        max_step: int,
        aux_layer_indices: tuple[int, ...] = (),
    ) -> LayerwiseRunner:
        """Of a decoder that was loaded with these formats. ``max_step``: the most tokens of a step. ``aux_layer_indices``: the layers, from 0,
        whose hidden states come with each output. Raises ``CapacityError``.
        """
        ...

    def eagle(
        self, head: EagleHead, groups: Sequence[KvGroup], num_blocks: int, block_size: int, dtype: torch.dtype, max_step: int
    ) -> EagleRunner:
        """Of an EAGLE head that was loaded with these formats, over a pool of its own. Raises ``CapacityError``."""
        ...

    def batch_invariant(self, dtype: torch.dtype) -> bool:
        """Whether a row's logits are the same bits in any batch, for a model of this dtype."""
        ...

    @property
    def own_threads(self) -> bool:
        """Whether steps run on threads that are not PyTorch's."""
        ...

    def selector(self) -> TokenSelector:
        """Who chooses tokens from the logits of these runners."""
        ...

    def describe(self, decoder: Decoder) -> Mapping[str, Any]:
        """``kernels`` and why, ``threads``, ``quantization``, ``kv_cache_dtype``, ``parameters``, ``weight_bytes``; and ``draft_quantization``.

        Where matrices are packed, also ``draft_weight_bytes``: what those take that only guess.
        """
        ...
