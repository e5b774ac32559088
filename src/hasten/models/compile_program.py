"""From a decoder to its native program: what ``Decoder.run`` computes, as fused instructions.

A layer is seven to ten of them: norm and quantise · q, k and v · head norms, rotation and KV write · attention and its merge ·
(quantise) · output projection added to the residual · norm and quantise · gate, up and activation · (quantise) · down, added.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from hasten.layers.attention import Attention
from hasten.layers.eagle import LAYER, EagleHead, EagleLayer
from hasten.layers.formats.packed import Packed
from hasten.layers.layer import Layer
from hasten.layers.linear import Linear
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.layers.spec import RotarySpec
from hasten.models.decoder import Decoder
from hasten.ops.cpu.matrix import Matrix
from hasten.ops.cpu.program import Activation, AttentionShape, Buffer, HeadNorm, NormKind, Program

_NORMS = {"rms": NormKind.RMS, "layer": NormKind.LAYER}
_ACTIVATIONS = {"silu": Activation.SILU, "gelu": Activation.GELU, "gelu_tanh": Activation.GELU_TANH}


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """Where things lie in the program's memory."""

    residual: Buffer  # the hidden states of the step
    left: Buffer  # those of tokens that left early, which layers [L, 2 L) read
    aux_hidden_states: dict[int, Buffer]  # the hidden states after some layers, once a step is done


def lower(decoder: Decoder, program: Program, aux_layer_indices: Collection[int] = ()) -> CompiledProgram:
    """Records the decoder into an empty program whose KV pool has the decoder's layers in their order.

    All matrices of the decoder must be ``Packed``. The program keeps what it needs of the decoder's parameters. After the L layers
    of the decoder it has L more that are ``Decoder.fill``: layer L + i leaves keys and values of layer i and nothing else.
    """
    assert all(0 <= layer < decoder.spec.num_layers for layer in aux_layer_indices), aux_layer_indices
    residual = program.rows("residual", decoder.spec.hidden_size)
    program.embed(_matrix(decoder.embedding.format), residual)
    if decoder.positions is not None:
        program.embed(_matrix(decoder.positions.format), residual, by_position=True)
    rotary = {spec: _rotary(program, decoder, spec) for spec in decoder.spec.rotary_specs}
    tapped: dict[int, Buffer] = {}
    for index, layer in enumerate(decoder.layers):
        program.begin_layer()
        _layer(program, cast(Layer, layer), index, residual, rotary)
        if index in aux_layer_indices:
            tapped[index] = _tap(program, residual, index, last=index == decoder.spec.num_layers - 1)
    left = program.rows("left", decoder.spec.hidden_size)
    for index, layer in enumerate(decoder.layers):
        program.begin_layer()
        _keys(program, cast(Layer, layer), index, left, rotary)
    program.begin_head()
    last = program.rows("last", decoder.spec.hidden_size)
    program.gather(residual, last)
    head = _matrix(decoder.lm_head.format)
    program.linear(head, _normalized(program, decoder.norm, last, head), decoder.lm_head.bias, None)
    return CompiledProgram(residual, left, tapped)


def compile_eagle_program(head: EagleHead, program: Program) -> CompiledProgram:
    """Records an EAGLE head into an empty program over a pool of one layer: ``EagleHead.run``, and ``head`` of the tokens wanted.

    The states that it runs on are read where ``CompiledProgram.left`` says. Its hidden size is a multiple of 16.
    """
    layer, size = head.layer, head.spec.hidden_size
    attention, spec = layer.attention, layer.attention.spec
    hidden, embedded, residual = (program.rows(name, size) for name in ("hidden state", "embedded", "residual"))
    both = program.rows("both", 2 * size)
    program.embed(_matrix(head.embedding.format), embedded)
    rotary = None if spec.rotary is None else program.rotary(head.rotary.frequencies(spec.rotary), _factor(spec.rotary))
    program.begin_layer()
    _norm(program, layer.attention_norm, embedded, program.part(both, 0, size))
    normed = program.part(both, size, size)
    _norm(program, layer.hidden_norm, hidden, normed)
    program.norm(NormKind.NONE, normed if layer.norm_before_residual else hidden, None, None, 0.0, residual)
    qkv = program.rows("qkv", spec.qkv_size)
    _linear(program, attention.qkv, _ready(program, both, _matrix(attention.qkv.format)), qkv)
    program.prepare(LAYER, qkv, spec.num_heads, _head_norm(attention), rotary)
    _attend(program, layer, LAYER, qkv, residual)
    program.begin_head()
    last = program.rows("last", size)
    program.gather(residual, last)
    lm_head = _matrix(head.lm_head.format)
    program.linear(lm_head, _normalized(program, head.norm, last, lm_head), head.lm_head.bias, None)
    return CompiledProgram(residual, hidden, {})


def _norm(program: Program, norm: Norm, x: Buffer, out: Buffer) -> None:
    program.norm(_NORMS[norm.spec.kind], x, norm.weight, norm.bias, norm.spec.eps, out)


def _tap(program: Program, residual: Buffer, index: int, *, last: bool) -> Buffer:
    """A copy of the residual, unless no later layer adds to it."""
    if last:
        return residual
    copy = program.rows(f"tap {index}", residual.width)
    program.norm(NormKind.NONE, residual, None, None, 0.0, copy)
    return copy


def _rotary(program: Program, decoder: Decoder, spec: RotarySpec) -> int:
    return program.rotary(decoder.rotary.frequencies(spec), _factor(spec))


def _factor(spec: RotarySpec) -> float:
    return 1.0 if spec.scaling is None else spec.scaling.attention_factor


def _layer(program: Program, layer: Layer, index: int, residual: Buffer, rotary: dict[RotarySpec, int]) -> None:
    _attend(program, layer, index, _keys(program, layer, index, residual, rotary), residual)


def _attend(program: Program, layer: Layer | EagleLayer, index: int, qkv: Buffer, residual: Buffer) -> None:
    """All that follows the keys: attention and feed-forward, added to the residual."""
    attention, spec = layer.attention, layer.attention.spec
    attended = program.rows("attended", spec.q_size)
    program.attend(index, qkv, AttentionShape(spec.num_heads, spec.scale, spec.window), attended)
    _linear(program, attention.out, _ready(program, attended, _matrix(attention.out.format)), residual, add=True)
    _mlp(program, layer.mlp, _normalized(program, layer.mlp_norm, residual, _matrix(layer.mlp.up.format)), residual)


def _keys(program: Program, layer: Layer, index: int, x: Buffer, rotary: dict[RotarySpec, int]) -> Buffer:
    """Keys and values of the layer go to the pool; returns the rows with its queries."""
    attention, spec = layer.attention, layer.attention.spec
    qkv = program.rows("qkv", spec.qkv_size)
    _linear(program, attention.qkv, _normalized(program, layer.attention_norm, x, _matrix(attention.qkv.format)), qkv)
    rotated = None if spec.rotary is None else rotary[spec.rotary]
    program.prepare(index, qkv, spec.num_heads, _head_norm(attention), rotated)
    return qkv


def _head_norm(attention: Attention) -> HeadNorm | None:
    q, k = attention.q_norm, attention.k_norm
    if q is None or k is None:
        return None
    return HeadNorm(_NORMS[q.spec.kind], q.spec.eps, q.weight, q.bias, k.weight, k.bias)


def _mlp(program: Program, mlp: Mlp, x: Buffer, residual: Buffer) -> None:
    size, activation, down = mlp.spec.intermediate_size, _ACTIVATIONS[mlp.spec.activation], _matrix(mlp.down.format)
    hidden = program.rows("hidden", size)
    if not mlp.spec.gated or size % 16 == 0:
        program.linear(_matrix(mlp.up.format), x, mlp.up.bias, hidden, gated=mlp.spec.gated, activation=activation)
        ready = _ready(program, hidden, down)
    else:
        # Gate and up do not begin at a panel of their own, so that one item would need parts of two.
        up = program.rows("up", 2 * size)
        _linear(program, mlp.up, x, up)
        ready = program.quantized_rows(down) if down.int8_activations else hidden
        program.activate(activation, up, ready, gated=True)
    _linear(program, mlp.down, ready, residual, add=True)


def _linear(program: Program, linear: Linear, x: Buffer, out: Buffer, *, add: bool = False) -> None:
    program.linear(_matrix(linear.format), x, linear.bias, out, add=add)


def _normalized(program: Program, norm: Norm, x: Buffer, reader: Matrix) -> Buffer:
    """norm(x), in the form that products with ``reader`` take."""
    out = program.quantized_rows(reader) if reader.int8_activations else program.rows("normalized", x.width)
    _norm(program, norm, x, out)
    return out


def _ready(program: Program, x: Buffer, reader: Matrix) -> Buffer:
    """x in the form that products with ``reader`` take."""
    if not reader.int8_activations:
        return x
    out = program.quantized_rows(reader)
    program.quantize(x, out)
    return out


def _matrix(weight_format: object) -> Matrix:
    assert isinstance(weight_format, Packed), weight_format
    return weight_format.matrix
