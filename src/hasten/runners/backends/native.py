"""The native CPU backend: matrices packed while they are loaded, and each step one call of a recorded program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hasten.core.errors import CapacityError
from hasten.kv.group import KvGroup
from hasten.kv.native_pool import NativeKvPool, native_block_bytes
from hasten.kv.pool import KvPool
from hasten.layers.eagle import EagleHead
from hasten.layers.formats.packed import Packed, PackedFormatFactory
from hasten.models.compile_program import CompiledProgram, compile_eagle_program, lower
from hasten.models.decoder import Decoder
from hasten.ops.base import Ops
from hasten.ops.cpu.cpu import DTYPES, Cpu, Dtype
from hasten.ops.cpu.matrix import Weights
from hasten.ops.cpu.program import Program
from hasten.ops.torch.backend import TorchOps
from hasten.runners.eagle_runner import NativeEagleRunner, TorchEagleRunner
from hasten.runners.native_runner import NativeRunner
from hasten.sampling.native_token_selector import NativeTokenSelector


class NativeBackend:
    """``quantization``: the model, and ``draft_quantization`` what guesses for it. ``int8_kv``: keys and values in int8 with a scale per
    token and head, else in the dtype of the model.
    """

    def __init__(self, cpu: Cpu, quantization: str | None, *, draft_quantization: str | None, int8_kv: bool) -> None:
        self.cpu, self.quantization, self.draft_quantization, self._int8_kv = cpu, quantization, draft_quantization, int8_kv
        self._weights, self._draft_weights = Weights(cpu), Weights(cpu)
        self.ops: Ops = TorchOps()

    def formats(self, dtype: torch.dtype) -> PackedFormatFactory:
        return PackedFormatFactory(self._weights, dtype, self.quantization)

    def draft_formats(self, dtype: torch.dtype) -> PackedFormatFactory:
        return PackedFormatFactory(self._draft_weights, dtype, self.draft_quantization)

    def block_bytes(self, groups: Sequence[KvGroup], block_size: int, dtype: torch.dtype) -> int:
        return native_block_bytes(self.cpu, groups, block_size, self._kv_dtype(dtype))

    def runner(
        self,
        decoder: Decoder,
        groups: Sequence[KvGroup],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        max_step: int,
        aux_layer_indices: tuple[int, ...] = (),
    ) -> NativeRunner:
        return self._recorded(
            partial(lower, decoder, aux_layer_indices=aux_layer_indices), groups, num_blocks, block_size, dtype, max_step
        )

    def eagle(
        self, head: EagleHead, groups: Sequence[KvGroup], num_blocks: int, block_size: int, dtype: torch.dtype, max_step: int
    ) -> NativeEagleRunner | TorchEagleRunner:
        if head.spec.hidden_size % 16:  # halves of what attention reads would not begin at a vector
            return TorchEagleRunner(head, KvPool(groups, num_blocks, block_size, dtype=dtype, device=torch.device("cpu")))
        runner = self._recorded(partial(compile_eagle_program, head), groups, num_blocks, block_size, dtype, max_step)
        return NativeEagleRunner(head, runner, max_step)

    def _recorded(
        self,
        record: Callable[[Program], CompiledProgram],
        groups: Sequence[KvGroup],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        max_step: int,
    ) -> NativeRunner:
        try:
            pool = NativeKvPool(self.cpu, groups, num_blocks, block_size, self._kv_dtype(dtype))
            program = Program(self.cpu, pool.kv, max_step)
            compiled = record(program)
        except MemoryError as refused:
            raise CapacityError(
                "the system refuses the memory of the KV cache or of a step",
                got=str(refused),
                remedy="Give less with kv_cache_memory or max_num_batched_tokens",
            ) from refused
        return NativeRunner(program, pool, compiled)

    def batch_invariant(self, dtype: torch.dtype) -> bool:
        return dtype == torch.float32 if self.quantization is None else self.quantization in ("int8", "int4")

    @property
    def own_threads(self) -> bool:
        return True

    def selector(self) -> NativeTokenSelector:
        return NativeTokenSelector(self.cpu)

    def describe(self, decoder: Decoder) -> Mapping[str, Any]:
        matrices = {id(m): m for m in decoder.modules() if isinstance(m, Packed)}.values()
        vectors = list(decoder.parameters())
        return {
            "kernels": f"native {self.cpu.isa}",
            "threads": self.cpu.threads,
            "quantization": self.quantization,
            "kv_cache_dtype": self._kv_dtype(decoder.dtype).name.lower(),
            "parameters": sum(m.in_features * m.out_features for m in matrices) + sum(p.numel() for p in vectors),
            "weight_bytes": self._weights.num_bytes + sum(p.numel() * 4 for p in vectors),
            "draft_quantization": self.draft_quantization if self._draft_weights.num_bytes else None,
            "draft_weight_bytes": self._draft_weights.num_bytes,
        }

    def _kv_dtype(self, dtype: torch.dtype) -> Dtype:
        return Dtype.INT8 if self._int8_kv else DTYPES[dtype]
