"""The PyTorch backend: the reference, for every processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hasten.engine.eagle_runner import PagedEagle
from hasten.engine.runner import DecoderRunner
from hasten.kv.group import KvGroup
from hasten.kv.pool import KvPool
from hasten.layers.eagle import EagleHead
from hasten.layers.formats.dense import DenseFormats
from hasten.models.decoder import Decoder
from hasten.ops.base import Ops
from hasten.sampling.chooser import PortableChooser


@dataclass(frozen=True, slots=True)
class TorchBackend:
    ops: Ops
    reason: str

    def formats(self, dtype: torch.dtype) -> DenseFormats:
        return DenseFormats(self.ops, dtype)

    def draft_formats(self, dtype: torch.dtype) -> DenseFormats:
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
        taps: tuple[int, ...] = (),
    ) -> DecoderRunner:
        pool = KvPool(groups, num_blocks, block_size, dtype=dtype, device=torch.device("cpu"))
        return DecoderRunner(decoder, pool, taps)

    def eagle(
        self, head: EagleHead, groups: Sequence[KvGroup], num_blocks: int, block_size: int, dtype: torch.dtype, max_step: int
    ) -> PagedEagle:
        return PagedEagle(head, KvPool(groups, num_blocks, block_size, dtype=dtype, device=torch.device("cpu")))

    def same_bits(self, dtype: torch.dtype) -> bool:
        return False  # its products depend on how many rows they have

    @property
    def own_threads(self) -> bool:
        return False

    def chooser(self) -> PortableChooser:
        return PortableChooser()

    def describe(self, decoder: Decoder) -> Mapping[str, Any]:
        return {
            "kernels": f"{self.ops.name} ({self.reason})",
            "threads": torch.get_num_threads(),
            "quantize": None,
            "kv_dtype": str(decoder.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in decoder.parameters()),
            "weight_bytes": sum(p.numel() * p.itemsize for p in decoder.parameters()),
            "draft_quantize": None,
        }
