"""``Program``: the step of one model, recorded once and run by one native call.

Recording names buffers (rows of activations) by ``Buffer``; what an instruction reads and writes is in its docstring. All
activations are float32, or int8 with a scale per row in front of a quantised matrix. T tokens · R rows whose logits are wanted.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.kv import NativeKv
from hasten.ops.cpu.library import LOGITS, NONE, StepArguments
from hasten.ops.cpu.logits import LogitsMemory
from hasten.ops.cpu.matrix import Matrix


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
    """Rows of float32, or of int8 with a scale each."""

    index: int
    width: int
    quantized: bool = False


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Over single heads of queries and keys, before the rotation."""

    kind: NormKind
    eps: float
    q_weight: Tensor
    q_bias: Tensor | None
    k_weight: Tensor
    k_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionShape:
    num_heads: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None  # [H]: logits without a value


class Program:
    """Recorded in order: prologue, ``begin_layer`` and a layer's instructions for each layer, ``begin_head`` and the head's."""

    def __init__(self, cpu: Cpu, kv: NativeKv, max_tokens: int) -> None:
        """``max_tokens``: the most tokens of a step. Raises ``MemoryError``."""
        self.cpu, self.kv, self.max_tokens = cpu, kv, max_tokens
        self._library = cpu.library
        self._handle = self._library.program_new(cpu.handle, kv.handle, max_tokens)
        weakref.finalize(self, self._library.program_free, self._handle)
        self._kept: list[object] = []  # what recorded instructions point at
        self._buffers: dict[tuple[str, int, bool], Buffer] = {}
        self.num_layers = 0
        self._padded_vocabulary = 0
        self._logits = LogitsMemory()
        self.vocab_size = 0

    def rows(self, name: str, width: int) -> Buffer:
        """The float32 buffer of this name; made when first asked for. Its padding is zero."""
        return self._buffer(name, width, quantized=False)

    def part(self, buffer: Buffer, column: int, width: int) -> Buffer:
        """Columns ``[column, column + width)`` of a float32 buffer, both multiples of 16: whoever writes there writes into it."""
        assert not buffer.quantized and column + width <= buffer.width, (buffer, column, width)
        assert column % 16 == width % 16 == 0, (column, width)
        return Buffer(self._library.program_part(self._handle, buffer.index, column), width)

    def quantized_rows(self, matrix: Matrix) -> Buffer:
        """The int8 buffer that products with ``matrix`` read; shared by all matrices of the same width."""
        return self._buffer("int8", matrix.in_features, quantized=True)

    def begin_layer(self) -> None:
        self.num_layers += 1
        self._library.program_begin_layer(self._handle)

    def begin_head(self) -> None:
        self._library.program_begin_head(self._handle)

    def embed(self, matrix: Matrix, out: Buffer, *, by_position: bool = False) -> None:
        """out = rows token_ids of the matrix; out += rows positions when ``by_position``. Runs in steps that begin at layer 0."""
        self._kept.append(matrix)
        self._library.program_embed(self._handle, matrix.handle, by_position, out.index)

    def rotary(self, inverse_frequencies: Tensor, factor: float) -> int:
        """cos and sin of the step's positions, for ``prepare``. Belongs in the prologue. Returns their index."""
        pointer = self._vector(inverse_frequencies)
        return int(self._library.program_rotary(self._handle, pointer, len(inverse_frequencies), factor))

    def norm(self, kind: NormKind, x: Buffer, weight: Tensor | None, bias: Tensor | None, eps: float, out: Buffer) -> None:
        """out = norm(x), quantised when ``out`` is."""
        rows, quantized = (NONE, out.index) if out.quantized else (out.index, NONE)
        self._library.program_norm(
            self._handle, kind, x.index, x.width, self._vector(weight), self._vector(bias), eps, rows, quantized
        )

    def copy(self, x: Buffer, out: Buffer) -> None:
        """out = x, quantised when ``out`` is."""
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
        """out = activation(x Wᵀ + b), out += ... when ``add``; without ``out``, the logits of the step.

        ``gated``: out = activation(first half) · second half; halves must be multiples of 16.
        """
        assert x.quantized == matrix.int8_activations and x.width == matrix.in_features, (x, matrix)
        self._kept.append(matrix)
        if out is None:
            self.vocab_size = matrix.out_features
            self._padded_vocabulary = -(-matrix.out_features // 16) * 16
        rows, quantized = (NONE, x.index) if x.quantized else (x.index, NONE)
        target = LOGITS if out is None else out.index
        self._library.program_linear(
            self._handle, matrix.handle, rows, quantized, self._vector(bias), target, add, gated, activation
        )

    def activate(self, activation: Activation, x: Buffer, out: Buffer, *, gated: bool) -> None:
        """out = activation(x), or activation(first half of x) · second half; quantised when ``out`` is."""
        rows, quantized = (NONE, out.index) if out.quantized else (out.index, NONE)
        self._library.program_activate(self._handle, activation, gated, x.index, out.width, rows, quantized)

    def prepare(self, layer: int, qkv: Buffer, num_heads: int, norm: HeadNorm | None, rotary: int | None) -> None:
        """Normalises and rotates queries in place, and writes keys and values of the step into layer ``layer`` of the pool."""
        self._library.program_prepare(
            self._handle,
            layer,
            qkv.index,
            num_heads,
            NormKind.NONE if norm is None else norm.kind,
            None if norm is None else self._vector(norm.q_weight),
            None if norm is None else self._vector(norm.q_bias),
            None if norm is None else self._vector(norm.k_weight),
            None if norm is None else self._vector(norm.k_bias),
            0.0 if norm is None else norm.eps,
            NONE if rotary is None else rotary,
        )

    def attend(self, layer: int, qkv: Buffer, shape: AttentionShape, out: Buffer) -> None:
        """out = attention of the queries in ``qkv`` over layer ``layer`` of the pool."""
        self._library.program_attend(
            self._handle,
            layer,
            qkv.index,
            shape.num_heads,
            shape.scale,
            shape.soft_cap or 0.0,
            shape.window or 0,
            self._vector(shape.sinks),
            out.index,
        )

    def gather(self, x: Buffer, out: Buffer) -> None:
        """out = the rows of x whose logits are wanted."""
        self._library.program_gather(self._handle, x.index, x.width, out.index)

    def view(self, buffer: Buffer) -> Tensor:
        """The float32 rows themselves, not a copy: [max_tokens, width]. Valid between steps and while the program lives."""
        assert not buffer.quantized, buffer
        stride = ctypes.c_int64()
        address = self._library.program_data(self._handle, buffer.index, ctypes.byref(stride))
        memory = (ctypes.c_float * (self.max_tokens * stride.value)).from_address(address)
        return torch.frombuffer(memory, dtype=torch.float32).view(self.max_tokens, stride.value)[:, : buffer.width]

    def run(self, step: StepArguments, num_logits: int) -> Tensor:
        """One step; fills in where the logits go and returns them [R, V], float32. Raises ``MemoryError``."""
        logits = self._logits.lend(num_logits, self._padded_vocabulary)
        step.num_logits = num_logits
        step.logits, step.logits_stride = logits.data_ptr(), self._padded_vocabulary
        if self._library.program_run(self._handle, ctypes.byref(step)):
            raise MemoryError("no memory for this step")
        return logits[:, : self.vocab_size]

    def _buffer(self, name: str, width: int, *, quantized: bool) -> Buffer:
        key = (name, width, quantized)
        if key not in self._buffers:
            make = self._library.program_quantized_rows if quantized else self._library.program_rows
            index = make(self._handle, width)
            if index < 0:
                raise MemoryError(f"no memory for {self.max_tokens} rows of {width} activations")
            self._buffers[key] = Buffer(index, width, quantized)
        return self._buffers[key]

    def _vector(self, values: Tensor | None) -> int | None:
        """Address of a float32 copy, padded with zeros to whole vectors of 16, that lives as long as the program."""
        if values is None:
            return None
        padded = torch.zeros(-(-len(values) // 16) * 16)
        padded[: len(values)] = values
        self._kept.append(padded)
        return padded.data_ptr()


def integers(*parts: list[int] | tuple[int, ...]) -> ctypes.Array[ctypes.c_int32]:
    """An int32 array of the parts end to end."""
    flat = list(chain.from_iterable(parts))
    return (ctypes.c_int32 * len(flat))(*flat)
