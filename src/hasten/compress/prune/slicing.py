"""``slice_decoder``: a smaller decoder with the selected rows and columns of another's weights.

Shape suffixes: E hidden size · O outputs · I inputs; sizes after pruning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.compress.prune.selection import Selection
from hasten.layers.attention import Attention
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.formats.base import WeightFormat
from hasten.layers.formats.dense import Dense
from hasten.layers.linear import Linear
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.models.decoder import Decoder
from hasten.models.spec import DecoderSpec
from hasten.ops.torch.backend import TorchOps


@torch.no_grad()
def slice_decoder(decoder: Decoder, selection: Selection, spec: DecoderSpec, ops: TorchOps) -> Decoder:
    """Return the decoder of ``spec`` that keeps what is selected; ``decoder`` is dense and float32.

    The norms' weights grow by √(channels before / after). So a channel that is always zero leaves an RMS norm without a change but
    that of its epsilon: the mean square is over fewer channels.

    Scales of attention that differ in ``spec`` move into the weights of the queries. No parameter requires a gradient.
    """
    sliced = Decoder(spec, ops, torch.float32)
    channels_E = selection.channels_E
    for target, source in ((sliced.embedding, decoder.embedding), (sliced.positions, decoder.positions)):
        if target is not None and source is not None:
            _matrix(target.format).copy_(_matrix(source.format)[:, channels_E])
    if not spec.tie_word_embeddings:
        _matrix(sliced.lm_head.format).copy_(_matrix(decoder.lm_head.format)[:, channels_E])
    _slice_norm(sliced.norm, decoder.norm, channels_E)
    for position, index in enumerate(selection.layers):
        target_layer, source_layer = sliced.layers[position], decoder.layers[index]
        assert isinstance(target_layer, DecoderLayer) and isinstance(source_layer, DecoderLayer)
        _slice_norm(target_layer.attention_norm, source_layer.attention_norm, channels_E)
        _slice_norm(target_layer.mlp_norm, source_layer.mlp_norm, channels_E)
        heads, kv_heads = selection.heads_LH[position], selection.kv_heads_LK[position]
        _slice_attention(target_layer.attention, source_layer.attention, heads, kv_heads, channels_E)
        _slice_mlp(target_layer.mlp, source_layer.mlp, selection.neurons_LF[position], channels_E)
    return sliced


def _slice_attention(target: Attention, source: Attention, heads_H: Tensor, kv_heads_K: Tensor, channels_E: Tensor) -> None:
    spec = source.spec
    dims = torch.arange(spec.head_dim, dtype=torch.int64, device="cpu")
    q_rows, kv_rows = ((heads[:, None] * spec.head_dim + dims).flatten() for heads in (heads_H, kv_heads_K))
    rows = torch.cat((q_rows, spec.q_size + kv_rows, spec.q_size + spec.kv_size + kv_rows))
    _slice_linear(target.qkv, source.qkv, rows, channels_E)
    _slice_linear(target.out, source.out, channels_E, q_rows)
    for target_norm, source_norm in ((target.q_norm, source.q_norm), (target.k_norm, source.k_norm)):
        if target_norm is not None and source_norm is not None:
            _slice_norm(target_norm, source_norm, dims)
    if (factor := spec.scale / target.spec.scale) != 1.0:
        queries = slice(0, target.spec.q_size)
        if target.q_norm is not None:
            target.q_norm.weight.mul_(factor)
            return
        _matrix(target.qkv.format)[queries].mul_(factor)
        if target.qkv.bias is not None:
            target.qkv.bias[queries].mul_(factor)


def _slice_mlp(target: Mlp, source: Mlp, neurons_F: Tensor, channels_E: Tensor) -> None:
    rows = torch.cat((neurons_F, source.spec.intermediate_size + neurons_F)) if source.spec.gated else neurons_F
    _slice_linear(target.up, source.up, rows, channels_E)
    _slice_linear(target.down, source.down, channels_E, neurons_F)


def _slice_linear(target: Linear, source: Linear, rows_O: Tensor, columns_I: Tensor) -> None:
    _matrix(target.format).copy_(_matrix(source.format)[rows_O][:, columns_I])
    if target.bias is not None and source.bias is not None:
        target.bias.copy_(source.bias[rows_O])


def _slice_norm(target: Norm, source: Norm, channels_E: Tensor) -> None:
    target.weight.copy_(source.weight[channels_E])
    if len(target.weight) < len(source.weight):
        target.weight.mul_((len(source.weight) / len(target.weight)) ** 0.5)
    if target.bias is not None and source.bias is not None:
        target.bias.copy_(source.bias[channels_E])


def _matrix(weight_format: WeightFormat) -> Tensor:
    assert isinstance(weight_format, Dense)
    return weight_format.weight
