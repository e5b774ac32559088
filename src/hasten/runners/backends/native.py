"""``NativeBackend``: native CPU kernels on packed matrices, one call per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from hasten.core.errors import CapacityError
from hasten.kv.group import KvGroup
from hasten.kv.pool import NativeKvPool, native_block_bytes
from hasten.layers.eagle import EagleHead
from hasten.layers.formats.packed import Packed, PackedFormatFactory
from hasten.models.compile_program import CompiledProgram, compile_eagle_program, compile_program
from hasten.models.decoder import Decoder
from hasten.models.kernel_shapes import attention_fault
from hasten.ops.base import Ops
from hasten.ops.cpu.cpu import DTYPES, Cpu, Dtype
from hasten.ops.cpu.matrix import Weights
from hasten.ops.cpu.program import Program
from hasten.ops.torch.backend import TorchOps
from hasten.runners.base import KvCacheConfig
from hasten.runners.eagle_runner import NativeEagleRunner, TorchEagleRunner
from hasten.runners.native_runner import NativeRunner
from hasten.sampling.chain import Chain
from hasten.sampling.native_token_selector import NativeTokenSelector
from hasten.sampling.token_selector import TorchTokenSelector


class NativeBackend:
    """``quantization`` is the target's, ``draft_quantization`` that of draft models and draft heads.

    ``activations`` is the engine option. ``int8_kv``: keys and values in int8 with one scale per token and head; otherwise in the
    model's dtype.
    """

    has_own_thread_pool: ClassVar[bool] = True

    def __init__(
        self, cpu: Cpu, quantization: str | None, *, draft_quantization: str | None, int8_kv: bool, activations: str = "auto"
    ) -> None:
        self.cpu, self.quantization, self.draft_quantization, self._int8_kv = cpu, quantization, draft_quantization, int8_kv
        self._activations = activations
        self._weights, self._draft_weights = Weights(cpu), Weights(cpu)
        self.ops: Ops = TorchOps()

    @property
    def kernels(self) -> str:
        return f"native {self.cpu.isa}"

    def formats(self, dtype: torch.dtype) -> PackedFormatFactory:
        return PackedFormatFactory(self._weights, dtype, self.quantization, self._activations)

    def draft_formats(self, dtype: torch.dtype) -> PackedFormatFactory:
        return PackedFormatFactory(self._draft_weights, dtype, self.draft_quantization, self._activations)

    def block_bytes(self, groups: Sequence[KvGroup], block_size: int, dtype: torch.dtype) -> int:
        return native_block_bytes(self.cpu, groups, block_size, self._kv_dtype(dtype))

    def make_runner(
        self, decoder: Decoder, kv: KvCacheConfig, max_num_batched_tokens: int, aux_layer_indices: tuple[int, ...] = ()
    ) -> NativeRunner:
        compile_decoder = partial(compile_program, decoder, aux_layer_indices=aux_layer_indices)
        return self._compiled_runner(compile_decoder, kv, max_num_batched_tokens)

    def make_eagle_runner(
        self, head: EagleHead, kv: KvCacheConfig, max_num_batched_tokens: int
    ) -> NativeEagleRunner | TorchEagleRunner:
        # The second half of the attention's input must start at a vector boundary.
        if head.spec.hidden_size % 16 or attention_fault(head.spec.layer.attention, self.cpu.library.limits) is not None:
            return TorchEagleRunner(head, kv.torch_pool())
        runner = self._compiled_runner(partial(compile_eagle_program, head), kv, max_num_batched_tokens)
        return NativeEagleRunner(head, runner, max_num_batched_tokens)

    def _compiled_runner(
        self, compile_into: Callable[[Program], CompiledProgram], kv: KvCacheConfig, max_num_batched_tokens: int
    ) -> NativeRunner:
        try:
            pool = NativeKvPool(self.cpu, kv.groups, kv.num_blocks, kv.block_size, self._kv_dtype(kv.dtype))
            program = Program(self.cpu, pool.kv, max_num_batched_tokens)
            return NativeRunner(program, pool, compile_into(program))
        except MemoryError as error:
            raise CapacityError(
                "the system refuses the memory for the KV cache or for a step",
                got=str(error),
                remedy="Lower kv_cache_memory or max_num_batched_tokens",
            ) from error

    def batch_dependence(self, dtype: torch.dtype) -> str | None:
        if self.cpu.isa == "amx" and self.quantization is None and dtype == torch.bfloat16:
            return "AMX tiles round bfloat16 products of many rows differently from products of few"
        return None

    def token_selector(self, chain: Chain) -> NativeTokenSelector:
        return NativeTokenSelector(self.cpu, TorchTokenSelector(chain))

    def describe(self, decoder: Decoder) -> Mapping[str, Any]:
        matrices = {id(m): m for m in decoder.modules() if isinstance(m, Packed)}.values()
        vectors = list(decoder.parameters())
        return {
            "kernels": self.kernels,
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
