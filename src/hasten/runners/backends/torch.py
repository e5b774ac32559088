"""The PyTorch backend: the reference, for every processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hasten.kv.group import KvGroup
from hasten.kv.pool import KvPool
from hasten.layers.eagle import EagleHead
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.models.decoder import Decoder
from hasten.ops.base import Ops
from hasten.runners.eagle_runner import TorchEagleRunner
from hasten.runners.torch_runner import TorchRunner
from hasten.sampling.token_selector import TorchTokenSelector


@dataclass(frozen=True, slots=True)
class TorchBackend:
    ops: Ops
    reason: str

    def formats(self, dtype: torch.dtype) -> DenseFormatFactory:
        return DenseFormatFactory(self.ops, dtype)

    def draft_formats(self, dtype: torch.dtype) -> DenseFormatFactory:
        return self.formats(dtype)

    def block_bytes(self, groups: Sequence[KvGroup], block_size: int, dtype: torch.dtype) -> int:
        return sum(group.block_bytes(block_size, dtype.itemsize) for group in groups)

    def runner(
        self,
        decoder: Decoder,
        groups: Sequence[KvGroup],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        max_step: int,
        aux_layer_indices: tuple[int, ...] = (),
    ) -> TorchRunner:
        pool = KvPool(groups, num_blocks, block_size, dtype=dtype, device=torch.device("cpu"))
        return TorchRunner(decoder, pool, aux_layer_indices)

    def eagle(
        self, head: EagleHead, groups: Sequence[KvGroup], num_blocks: int, block_size: int, dtype: torch.dtype, max_step: int
    ) -> TorchEagleRunner:
        return TorchEagleRunner(head, KvPool(groups, num_blocks, block_size, dtype=dtype, device=torch.device("cpu")))

    def batch_invariant(self, dtype: torch.dtype) -> bool:
        return False  # its products depend on how many rows they have

    @property
    def own_threads(self) -> bool:
        return False

    def selector(self) -> TorchTokenSelector:
        return TorchTokenSelector()

    def describe(self, decoder: Decoder) -> Mapping[str, Any]:
        return {
            "kernels": f"{self.ops.name} ({self.reason})",
            "threads": torch.get_num_threads(),
            "quantization": None,
            "kv_cache_dtype": str(decoder.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in decoder.parameters()),
            "weight_bytes": sum(p.numel() * p.itemsize for p in decoder.parameters()),
            "draft_quantization": None,
        }
