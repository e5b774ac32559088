"""``Program``: the step of one model, recorded once and run by one native call.

Instructions read and write buffers (rows of activations), as their docstrings say. Activations are float32, or int8 with a scale
per row before a quantised matrix. T tokens · R rows of logits · V vocabulary
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.kv import NativeKv
from hasten.ops.cpu.library import LOGITS, NONE, StepArguments
from hasten.ops.cpu.limits import check_option
from hasten.ops.cpu.logits_buffer import LogitsBuffer
from hasten.ops.cpu.matrix import Matrix
from hasten.ops.cpu.native_tensor import address, padded_vector

LANES = 16  # rows of activations end at a multiple of so many floats
MAX_WINDOW = 2**31 - 1  # no context is longer


class NormKind(IntEnum):
    """As in native/kernels.h. NONE copies, or only quantises."""

    NONE = 0
    RMS = 1
    LAYER = 2


class Activation(IntEnum):
    """As in native/kernels.h."""

    NONE = 0
    SILU = 1
    GELU = 2
    GELU_TANH = 3


@dataclass(frozen=True, slots=True)
class Buffer:
    """Rows of float32, or of int8 with a scale per row."""

    index: int
    width: int
    quantized: bool = False

    @property
    def indices(self) -> tuple[int, int]:
        """The index as a float32 buffer and as an int8 buffer, one of them ``NONE``."""
        return (NONE, self.index) if self.quantized else (self.index, NONE)


@dataclass(frozen=True, slots=True)
class QkNorm:
    """Norm of each head of queries and keys before RoPE."""

    kind: NormKind
    eps: float
    q_weight: Tensor
    q_bias: Tensor | None
    k_weight: Tensor
    k_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionParams:
    num_heads: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None  # [H]: logits without a value


class Program:
    """A recorded step.

    Recording order: the prologue, ``begin_layer`` and instructions for each layer, ``begin_head`` and instructions.
    """

    def __init__(self, cpu: Cpu, kv: NativeKv, max_tokens: int) -> None:
        """Create an empty program for steps of up to ``max_tokens`` tokens.

        Raises ``InvalidOption`` or ``MemoryError``.
        """
        check_option("max_num_batched_tokens", max_tokens, cpu.library.limits.tokens)
        self.cpu, self.kv, self.max_tokens = cpu, kv, max_tokens
        self._library = cpu.library
        self._handle = self._library.new("program", cpu.handle, kv.handle, max_tokens)
        weakref.finalize(self, self._library.program_free, self._handle)
        self._references: list[object] = []  # objects that recorded instructions point to
        self._buffers: dict[tuple[str, int, bool], Buffer] = {}
        self._logits = LogitsBuffer()
        self.num_layers = 0
        self.vocab_size = 0

    def buffer(self, name: str, width: int) -> Buffer:
        """Return the float32 buffer of this name, created on first use.

        Its padding is zero. Raises ``MemoryError``.
        """
        return self._buffer(name, width, quantized=False)

    def slice(self, buffer: Buffer, column: int, width: int) -> Buffer:
        """Return columns ``[column, column + width)`` of a float32 buffer, which share its memory.

        ``column`` and ``width`` are multiples of 16.
        """
        assert not buffer.quantized and column + width <= buffer.width, (buffer, column, width)
        assert column % LANES == width % LANES == 0, (column, width)
        return Buffer(self._library.program_add_slice(self._handle, buffer.index, column, width), width)

    def int8_buffer(self, matrix: Matrix) -> Buffer:
        """Return the int8 input buffer of ``matrix``, shared by all matrices of its width.

        Raises ``MemoryError``.
        """
        return self._buffer("int8", matrix.in_features, quantized=True)

    def begin_layer(self) -> None:
        self.num_layers += 1
        self._library.program_begin_layer(self._handle)

    def begin_head(self) -> None:
        self._library.program_begin_head(self._handle)

    def embed(self, matrix: Matrix, out: Buffer, *, by_position: bool = False) -> None:
        """out = rows token_ids of the matrix; ``by_position``: out += rows positions.

        Runs in steps that begin at layer 0.
        """
        self._references.append(matrix)
        self._library.program_embed(self._handle, matrix.handle, by_position, out.index)

    def rotary_table(self, inverse_frequencies: Tensor, factor: float) -> int:
        """Compute cos and sin of the positions for ``rope_and_cache``; return their index.

        Belongs in the prologue.
        """
        half = len(inverse_frequencies)
        return int(self._library.program_rotary_table(self._handle, self._vector(inverse_frequencies, half), half, factor))

    def norm(self, kind: NormKind, x: Buffer, weight: Tensor | None, bias: Tensor | None, eps: float, out: Buffer) -> None:
        """out = norm(x), quantised if ``out`` is."""
        vectors = [self._vector(values, x.width) for values in (weight, bias)]
        self._library.program_norm(self._handle, kind, x.index, x.width, *vectors, eps, *out.indices)

    def copy(self, x: Buffer, out: Buffer) -> None:
        """out = x, quantised if ``out`` is."""
        self.norm(NormKind.NONE, x, None, None, 0.0, out)

    def linear(
        self,
        matrix: Matrix,
        x: Buffer,
        bias: Tensor | None,
        out: Buffer | None,
        *,
        add: bool = False,
        gated: bool = False,
        activation: Activation = Activation.NONE,
    ) -> None:
        """out = activation(x Wᵀ + b), out += ... if ``add``; ``out`` None: the logits of the step.

        ``gated``: out = activation(first half) · second half; halves must be multiples of 16.
        """
        assert x.quantized == matrix.int8_activations and x.width == matrix.in_features, (x, matrix)
        self._references.append(matrix)
        if out is None:
            self.vocab_size = matrix.out_features
        target = LOGITS if out is None else out.index
        bias_address = self._vector(bias, matrix.out_features)
        self._library.program_linear(self._handle, matrix.handle, *x.indices, bias_address, target, add, gated, activation)

    def activate(self, activation: Activation, x: Buffer, out: Buffer, *, gated: bool) -> None:
        """out = activation(x), or activation(first half of x) · second half; quantised if ``out`` is."""
        self._library.program_activate(self._handle, activation, gated, x.index, out.width, *out.indices)

    def rope_and_cache(self, layer: int, qkv: Buffer, num_heads: int, norm: QkNorm | None, rotary_table: int | None) -> None:
        """Normalise and rotate queries in place; write keys and values to layer ``layer`` of the KV cache."""
        kind, eps = NormKind.NONE, 0.0
        weights: list[int | None] = [None] * 4
        if norm is not None:
            kind, eps = norm.kind, norm.eps
            head_dim = len(norm.q_weight)
            weights = [self._vector(values, head_dim) for values in (norm.q_weight, norm.q_bias, norm.k_weight, norm.k_bias)]
        table = NONE if rotary_table is None else rotary_table
        self._library.program_rope_and_cache(self._handle, layer, qkv.index, num_heads, kind, *weights, eps, table)

    def attend(self, layer: int, qkv: Buffer, params: AttentionParams, out: Buffer) -> None:
        """out = attention of the queries in ``qkv`` over layer ``layer`` of the KV cache."""
        self._library.program_attend(
            self._handle,
            layer,
            qkv.index,
            params.num_heads,
            params.scale,
            params.soft_cap or 0.0,
            min(params.window or 0, MAX_WINDOW),
            self._vector(params.sinks, params.num_heads),
            out.index,
        )

    def gather(self, x: Buffer, out: Buffer) -> None:
        """out = rows logits_indices of x."""
        self._library.program_gather(self._handle, x.index, x.width, out.index)

    def select_columns(self, x: Buffer, columns_I: Tensor, out: Buffer) -> None:
        """out = x with its column ``columns_I[i]`` at column i.

        In the prologue it runs in steps that begin at layer 0.
        """
        columns = columns_I.to(torch.int32).contiguous()
        self._library.program_select_columns(self._handle, x.index, address(columns, torch.int32, out.width), out.width, out.index)

    def view(self, buffer: Buffer) -> Tensor:
        """Return the memory of a float32 buffer, [max_tokens, width].

        It is valid between steps while the program lives.
        """
        assert not buffer.quantized, buffer
        data, stride = ctypes.c_void_p(), ctypes.c_int64()
        self._library.program_buffer_data(self._handle, buffer.index, ctypes.byref(data), ctypes.byref(stride))
        assert data.value is not None
        memory = (ctypes.c_float * (self.max_tokens * stride.value)).from_address(data.value)
        with torch.inference_mode(False):  # its users write to it in any mode
            values = torch.frombuffer(memory, dtype=torch.float32)
            return values.view(self.max_tokens, stride.value)[:, : buffer.width]

    def run(self, step: StepArguments, num_logits: int) -> Tensor:
        """Run one step, setting its logits fields; return the logits [R, V], float32. Raises ``MemoryError``."""
        width = -(-self.vocab_size // LANES) * LANES
        logits = self._logits.lend(num_logits, width)
        step.num_logits = num_logits
        step.logits, step.logits_stride = address(logits, torch.float32, num_logits, width), width
        self._library.program_run(self._handle, ctypes.byref(step))
        return logits[:, : self.vocab_size]

    def _buffer(self, name: str, width: int, *, quantized: bool) -> Buffer:
        key = (name, width, quantized)
        if key not in self._buffers:
            add = self._library.program_add_int8_buffer if quantized else self._library.program_add_buffer
            try:
                index = add(self._handle, width)
            except MemoryError as error:
                raise MemoryError(f"no memory for {self.max_tokens} rows of {width} activations") from error
            self._buffers[key] = Buffer(index, width, quantized)
        return self._buffers[key]

    def _vector(self, values: Tensor | None, size: int) -> int | None:
        """Return the address of a float32 copy of a vector [size], padded with zeros.

        The copy lives as long as the program.
        """
        if values is None:
            return None
        padded = padded_vector(values, size, LANES)
        self._references.append(padded)
        return address(padded, torch.float32, len(padded))
