"""``TorchBackend``: PyTorch on any processor, the reference for the native kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hasten.kv.group import KvGroup
from hasten.layers.eagle import EagleHead
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.models.decoder import Decoder
from hasten.ops.base import Ops
from hasten.runners.base import KvCacheConfig
from hasten.runners.eagle_runner import TorchEagleRunner
from hasten.runners.torch_runner import TorchRunner
from hasten.sampling.chain import Chain
from hasten.sampling.token_selector import TorchTokenSelector


@dataclass(slots=True)
class TorchBackend:
    has_own_thread_pool: ClassVar[bool] = False
    ops: Ops
    reason: str  # for this choice of operations

    @property
    def kernels(self) -> str:
        return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"

    def formats(self, dtype: torch.dtype) -> DenseFormatFactory:
        return DenseFormatFactory(self.ops, dtype)

    def draft_formats(self, dtype: torch.dtype) -> DenseFormatFactory:
        return self.formats(dtype)

    def block_bytes(self, groups: Sequence[KvGroup], block_size: int, dtype: torch.dtype) -> int:
        return sum(group.block_bytes(block_size, dtype.itemsize) for group in groups)

    def make_runner(
        self, decoder: Decoder, kv: KvCacheConfig, max_num_batched_tokens: int, aux_layer_indices: tuple[int, ...] = ()
    ) -> TorchRunner:
        return TorchRunner(decoder, kv.torch_pool(), aux_layer_indices)

    def make_eagle_runner(self, head: EagleHead, kv: KvCacheConfig, max_num_batched_tokens: int) -> TorchEagleRunner:
        return TorchEagleRunner(head, kv.torch_pool())

    def batch_dependence(self, dtype: torch.dtype) -> str:
        return "PyTorch's matrix products round differently for another number of rows"

    def token_selector(self, chain: Chain) -> TorchTokenSelector:
        return TorchTokenSelector(chain)

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
