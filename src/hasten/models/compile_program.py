"""Compile a decoder, or an EAGLE head, into a native program of fused instructions.

A layer takes seven to ten instructions::

    norm and quantise · q, k and v · QK norm, RoPE and KV cache write · attention and its merge · (quantise) · output, added
    norm and quantise · gate, up and activation · (quantise) · down, added
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from hasten.core.errors import UnsupportedModel
from hasten.layers.attention import Attention
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.eagle import LAYER_INDEX, EagleHead, EagleLayer
from hasten.layers.formats.fused import Fused
from hasten.layers.formats.packed import Packed
from hasten.layers.linear import Embedding, Linear
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.models.decoder import Decoder
from hasten.models.kernel_shapes import kernel_faults
from hasten.ops.cpu.program import Activation, AttentionParams, Buffer, NormKind, Program, QkNorm

_NORMS = {"rms": NormKind.RMS, "layer": NormKind.LAYER}
_ACTIVATIONS = {"silu": Activation.SILU, "gelu": Activation.GELU, "gelu_tanh": Activation.GELU_TANH}


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """Where a compiled program keeps the hidden states of the step, and what embeds positions."""

    residual: Buffer  # the input and output of the layers
    exit_hidden: Buffer  # the input of the layers that only fill KV; of an EAGLE program, the hidden states that it reads
    aux_hidden_states: dict[int, Buffer]  # the hidden states after some layers, valid when a step is done
    positions: Embedding | None = None  # learned positions, which the program adds to the embeddings that it looks up


def compile_program(decoder: Decoder, program: Program, aux_layer_indices: Collection[int] = ()) -> CompiledProgram:
    """Record the decoder into an empty program whose KV pool has the decoder's layers in their order.

    All matrices of the decoder must be ``Packed``, or ``Fused`` of such. The program keeps the parameters that it needs. Layer 0 of
    the program is empty: only a step that begins there looks embeddings up. Layers [1, L + 1) are those of the decoder, and layers
    [L + 1, 2 L + 1) are ``Decoder.fill_kv``: layer L + 1 + i stores keys and values of layer i.

    Raises ``UnsupportedModel`` for layers that the kernels do not take.
    """
    if faults := kernel_faults(decoder.spec, program.cpu.library.limits):
        raise UnsupportedModel("the native CPU kernels do not take this model", got="; ".join(faults), remedy="Use backend='torch'")
    num_layers, size = decoder.spec.num_layers, decoder.spec.hidden_size
    assert all(0 <= layer < num_layers for layer in aux_layer_indices), aux_layer_indices
    residual = program.buffer("residual", size)
    _embed(program, decoder.embedding, residual)
    if decoder.positions is not None:
        _embed(program, decoder.positions, residual, by_position=True)
    compiler = _Compiler(program, decoder.rotary)
    program.begin_layer()
    layers = [cast(DecoderLayer, layer) for layer in decoder.layers]
    aux_hidden_states: dict[int, Buffer] = {}
    for index, layer in enumerate(layers):
        program.begin_layer()
        qkv = compiler.qkv(layer.attention, index, compiler.normalized(layer.attention_norm, residual, layer.attention.qkv))
        compiler.attention_and_mlp(layer, index, qkv, residual)
        if index in aux_layer_indices:
            aux_hidden_states[index] = residual if index == num_layers - 1 else program.buffer(f"aux hidden state {index}", size)
            if index < num_layers - 1:  # later layers add to the residual
                program.copy(residual, aux_hidden_states[index])
    exit_hidden = program.buffer("exit hidden", size)
    for index, layer in enumerate(layers):
        program.begin_layer()
        compiler.qkv(layer.attention, index, compiler.normalized(layer.attention_norm, exit_hidden, layer.attention.qkv))
    compiler.head(decoder.norm, decoder.lm_head, residual)
    return CompiledProgram(residual, exit_hidden, aux_hidden_states, decoder.positions)


def compile_eagle_program(head: EagleHead, program: Program) -> CompiledProgram:
    """Record ``EagleHead.run`` and ``EagleHead.head`` into an empty program over a KV pool of one layer.

    The program reads hidden states from ``CompiledProgram.exit_hidden``. The head's hidden size must be a multiple of 16.
    """
    layer, size = head.layer, head.spec.hidden_size
    hidden, embedded, residual = (program.buffer(name, size) for name in ("hidden state", "embedded", "residual"))
    attention_input = program.buffer("attention input", 2 * size)
    _embed(program, head.embedding, embedded)
    compiler = _Compiler(program, head.rotary)
    program.begin_layer()
    compiler.norm(layer.attention_norm, embedded, program.slice(attention_input, 0, size))
    normed = program.slice(attention_input, size, size)
    compiler.norm(layer.hidden_norm, hidden, normed)
    program.copy(normed if layer.norm_before_residual else hidden, residual)
    qkv = compiler.qkv(layer.attention, LAYER_INDEX, compiler.quantized(attention_input, layer.attention.qkv))
    compiler.attention_and_mlp(layer, LAYER_INDEX, qkv, residual)
    compiler.head(head.norm, head.lm_head, residual)
    return CompiledProgram(residual, hidden, {})


class _Compiler:
    """Records parts of decoder layers into a program. Making one records the rotary tables."""

    def __init__(self, program: Program, rotary: RotaryTables) -> None:
        self.program = program
        self.rotary = {
            spec: program.rotary_table(frequencies, spec.attention_factor)
            for spec, frequencies in rotary.inverse_frequencies.items()
        }

    def norm(self, norm: Norm, x: Buffer, out: Buffer) -> None:
        self.program.norm(_NORMS[norm.spec.kind], x, norm.weight, norm.bias, norm.spec.eps, out)

    def input_buffer(self, reader: Linear, name: str) -> Buffer:
        """Return the buffer for the input of ``reader``, int8 if all its parts take int8 inputs in order."""
        parts = [part for _, part in _parts(reader)]
        if all(part.int8_activations and part.input_order is None for part in parts):
            return self.program.int8_buffer(parts[0].matrix)
        return self.program.buffer(name, parts[0].in_features)

    def normalized(self, norm: Norm, x: Buffer, reader: Linear) -> Buffer:
        """Return norm(x) as an input of ``reader``."""
        out = self.input_buffer(reader, "normalized")
        self.norm(norm, x, out)
        return out

    def quantized(self, x: Buffer, reader: Linear) -> Buffer:
        """Return x as an input of ``reader``, quantised once if all its parts take that."""
        parts = [part for _, part in _parts(reader)]
        takes_int8 = all(part.int8_activations and part.input_order is None for part in parts)
        return self.as_input(x, parts[0]) if takes_int8 else x

    def as_input(self, x: Buffer, part: Packed) -> Buffer:
        """Return x in the order of the columns of ``part``, in int8 if it takes int8."""
        if part.input_order is not None:
            columns = self.program.buffer("columns in order", x.width)
            self.program.select_columns(x, part.input_order, columns)
            x = columns
        if x.quantized or not part.int8_activations:
            return x
        out = self.program.int8_buffer(part.matrix)
        self.program.copy(x, out)
        return out

    def linear(
        self,
        linear: Linear,
        x: Buffer,
        out: Buffer | None,
        *,
        add: bool = False,
        gated: bool = False,
        activation: Activation = Activation.NONE,
    ) -> None:
        """out = linear(x), or as ``Program.linear`` says; each part of a fused matrix has columns of ``out``."""
        for rows, part in _parts(linear):
            bias = None if linear.bias is None else linear.bias[rows]
            is_part = part.out_features != linear.format.out_features
            assert not is_part or (out is not None and not gated), linear.format
            columns = self.program.slice(out, rows.start, part.out_features) if is_part and out is not None else out
            inputs = self.as_input(x, part)
            self.program.linear(part.matrix, inputs, bias, columns, add=add, gated=gated, activation=activation)

    def qkv(self, attention: Attention, index: int, x: Buffer) -> Buffer:
        """Store keys and values of layer ``index``; return the rows [q | k | v]."""
        spec, q_norm, k_norm = attention.spec, attention.q_norm, attention.k_norm
        qkv = self.program.buffer("qkv", spec.qkv_size)
        self.linear(attention.qkv, x, qkv)
        qk_norm = None
        if q_norm is not None and k_norm is not None:
            kind, eps = _NORMS[q_norm.spec.kind], q_norm.spec.eps
            qk_norm = QkNorm(kind, eps, q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias)
        rotary = None if spec.rotary is None else self.rotary[spec.rotary]
        self.program.rope_and_cache(index, qkv, spec.num_heads, qk_norm, rotary)
        return qkv

    def attention_and_mlp(self, layer: DecoderLayer | EagleLayer, index: int, qkv: Buffer, residual: Buffer) -> None:
        """Add attention and feed-forward of the layer to the residual."""
        attention, spec = layer.attention, layer.attention.spec
        attended = self.program.buffer("attended", spec.q_size)
        self.program.attend(index, qkv, AttentionParams(spec.num_heads, spec.scale, spec.window), attended)
        self.linear(attention.out, self.quantized(attended, attention.out), residual, add=True)
        self.mlp(layer.mlp, self.normalized(layer.mlp_norm, residual, layer.mlp.up), residual)

    def mlp(self, mlp: Mlp, x: Buffer, residual: Buffer) -> None:
        size, gated, activation = mlp.spec.intermediate_size, mlp.spec.gated, _ACTIVATIONS[mlp.spec.activation]
        if not isinstance(mlp.up.format, Fused) and (not gated or size % 16 == 0):
            hidden = self.program.buffer("hidden", size)
            self.linear(mlp.up, x, hidden, gated=gated, activation=activation)
            hidden = self.quantized(hidden, mlp.down)
        else:
            # The fused instruction needs one matrix, with the rows of up at a panel of 16.
            up = self.program.buffer("up", mlp.up.format.out_features)
            self.linear(mlp.up, x, up)
            hidden = self.input_buffer(mlp.down, "hidden")
            self.program.activate(activation, up, hidden, gated=gated)
        self.linear(mlp.down, hidden, residual, add=True)

    def head(self, norm: Norm, lm_head: Linear, residual: Buffer) -> None:
        self.program.begin_head()
        gathered = self.program.buffer("gathered", residual.width)
        self.program.gather(residual, gathered)
        self.linear(lm_head, self.normalized(norm, gathered, lm_head), None)


def _embed(program: Program, embedding: Embedding, out: Buffer, *, by_position: bool = False) -> None:
    """out = the embeddings of the step's tokens; ``by_position``: out += those of their positions."""
    packed = _packed(embedding)
    if packed.input_order is None:
        program.embed(packed.matrix, out, by_position=by_position)
        return
    columns = program.buffer("columns in order", out.width)
    if by_position:
        program.select_columns(out, packed.input_order, columns)
    program.embed(packed.matrix, columns, by_position=by_position)
    program.select_columns(columns, packed.input_order.argsort(), out)


def _parts(linear: Linear) -> list[tuple[slice, Packed]]:
    """Return the native parts of a layer, each with its rows."""
    if isinstance(linear.format, Fused):
        return [(rows, cast(Packed, part)) for rows, part in linear.format.parts]
    return [(slice(0, linear.format.out_features), _packed(linear))]


def _packed(module: Linear | Embedding) -> Packed:
    assert isinstance(module.format, Packed), module.format
    return module.format
