"""``Backend``: weight formats, KV block size, runners and token selection of one kind of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch

from hasten.kv.group import KvGroup
from hasten.layers.eagle import EagleHead
from hasten.layers.formats.base import WeightFormatFactory
from hasten.models.decoder import Decoder
from hasten.ops.base import Ops
from hasten.runners.base import KvCacheConfig, LayerwiseRunner
from hasten.sampling.chain import Chain
from hasten.sampling.token_selector import TokenSelector
from hasten.speculative.drafters.eagle import EagleRunner


class Backend(Protocol):
    """A ``dtype`` here is the one that the checkpoint's weights are read in."""

    ops: Ops  # for computations outside of steps
    has_own_thread_pool: ClassVar[bool]  # whether steps run on threads that are not PyTorch's

    @property
    def kernels(self) -> str:
        """The kernels and their instruction set; other ones compute other numbers."""
        ...

    def formats(self, dtype: torch.dtype) -> WeightFormatFactory:
        """Return the weight formats of the target."""
        ...

    def draft_formats(self, dtype: torch.dtype) -> WeightFormatFactory:
        """Return the weight formats of drafters. They may be coarser: no output depends on them."""
        ...

    def block_bytes(self, groups: Sequence[KvGroup], block_size: int, dtype: torch.dtype) -> int:
        """Return the bytes of one KV block in all groups together."""
        ...

    def make_runner(
        self, decoder: Decoder, kv: KvCacheConfig, max_num_batched_tokens: int, aux_layer_indices: tuple[int, ...] = ()
    ) -> LayerwiseRunner:
        """Return a runner with a KV cache of its own, of a decoder with this backend's formats.

        ``aux_layer_indices``: the layers, from 0, whose hidden states each output holds. Raises ``CapacityError``.
        """
        ...

    def make_eagle_runner(self, head: EagleHead, kv: KvCacheConfig, max_num_batched_tokens: int) -> EagleRunner:
        """Return a runner with a KV cache of its own. Raises ``CapacityError``."""
        ...

    def batch_dependence(self, dtype: torch.dtype) -> str | None:
        """Return why a row's logits depend on the size of its step, in one clause; None if they do not.

        None promises the same bits alone, in any batch, in chunks of a prompt and in draft trees (batch invariance).
        """
        ...

    def token_selector(self, chain: Chain) -> TokenSelector:
        """Return what selects tokens from the logits of these runners."""
        ...

    def describe(self, decoder: Decoder) -> Mapping[str, Any]:
        """Return ``kernels``, ``threads``, ``parameters``, ``weight_bytes`` and the dtypes.

        The native backend adds ``draft_weight_bytes``, the memory of the weights that only draft.
        """
        ...
