"""``Storage``: the bytes that a decoder keeps for each weight, and for each token in the KV cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hasten.core.errors import InvalidOption, nearest, show
from hasten.kv.group import KvGroup
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.formats.base import WeightFormat, WeightFormatFactory
from hasten.layers.formats.dense import Dense, MetaFormatFactory
from hasten.layers.formats.native_form import NativeForm
from hasten.layers.formats.packed import BITS
from hasten.models.decoder import Decoder
from hasten.models.spec import DecoderSpec
from hasten.models.weights import weight_bytes
from hasten.ops.cpu.cpu import Dtype
from hasten.ops.cpu.matrix import Groups
from hasten.ops.torch.backend import TorchOps

INT8_SCALE_BYTES = 4  # of the keys, and of the values, of a token and head
# Bits per weight of the quantisations of a machine that is not here.
QUANTIZED_BITS = {
    "int8": BITS[Dtype.INT8],
    "int4": BITS[Dtype.INT4],
    "int8-weight-only": BITS[Dtype.INT8],
    "int4-weight-only": BITS[Dtype.INT4],
    "fp8": NativeForm(Dtype.FP8, Groups(128)).bits,
}
KvBytes = Mapping[tuple[int, int], float]  # (key/value heads, head dim) -> keys and values of a token in a layer


@dataclass(frozen=True, slots=True)
class LayerBits:
    """Bits that a product reads for each weight of a layer's matrices."""

    qkv: float
    out: float
    up: float
    down: float


@dataclass(frozen=True, slots=True)
class Storage:
    name: str  # of the weights' form, such as "int8" or "bfloat16"
    layers: tuple[LayerBits, ...]
    embedding: float  # bits per weight
    lm_head: float
    positions: float  # 0: there are none
    vector_bytes: int  # of an element of a norm or a bias
    activation_bytes: int  # of an element of a hidden state
    kv_bytes: KvBytes
    weight_bytes: int  # of the decoder


def storage_of(decoder: Decoder, kv_bytes: KvBytes) -> Storage:
    """Return what a decoder keeps, which may be on the meta device."""
    positions, itemsize = decoder.positions, decoder.dtype.itemsize
    layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
    return Storage(
        name=" and ".join(dict.fromkeys(form_name(layer.mlp.up.format) for layer in layers)),
        layers=tuple(_layer_bits(layer) for layer in layers),
        embedding=decoder.embedding.format.bits,
        lm_head=decoder.lm_head.format.bits,
        positions=0.0 if positions is None else positions.format.bits,
        vector_bytes=itemsize,
        activation_bytes=itemsize,
        kv_bytes=kv_bytes,
        weight_bytes=weight_bytes(decoder),
    )


def planned_storage(spec: DecoderSpec, dtype: torch.dtype, formats: WeightFormatFactory, kv_bytes: KvBytes) -> Storage:
    """Return what a decoder would keep, from one layer of each kind.

    ``formats`` makes matrices on the meta device.
    """
    kinds = [dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, scale=1.0)) for layer in spec.layers]
    distinct = tuple(dict.fromkeys(kinds))
    decoder = Decoder(dataclasses.replace(spec, layers=distinct), TorchOps(), dtype, "meta", formats)
    planned = storage_of(decoder, kv_bytes)
    index = {kind: i for i, kind in enumerate(distinct)}
    layer_bytes = [weight_bytes(layer) for layer in decoder.layers]
    repeated = sum(layer_bytes[index[kind]] for kind in kinds) - sum(layer_bytes)
    layers = tuple(planned.layers[index[kind]] for kind in kinds)
    return dataclasses.replace(planned, layers=layers, weight_bytes=planned.weight_bytes + repeated)


def _layer_bits(layer: DecoderLayer) -> LayerBits:
    matrices = (layer.attention.qkv, layer.attention.out, layer.mlp.up, layer.mlp.down)
    return LayerBits(*(matrix.format.bits for matrix in matrices))


def form_name(weight_format: WeightFormat) -> str:
    """Return how a matrix is kept.

    A planned one has the dtype of its future products and the bits of its future form.
    """
    if isinstance(weight_format, Dense) and weight_format.weight.itemsize * 8 != weight_format.bits:
        named = {bits: dtype.name.lower() for dtype, bits in BITS.items()}
        return named.get(weight_format.bits, f"{weight_format.bits:g} bits per weight")
    return weight_format.form


def plain_storage(spec: DecoderSpec, dtype: torch.dtype, quantization: str | None = None, *, int8_kv: bool = False) -> Storage:
    """Return the storage on a machine that packs nothing.

    A weight has the bits of its dtype or of its quantisation. Raises ``InvalidOption`` for an unknown ``quantization``.
    """
    return planned_storage(spec, dtype, plain_formats(dtype, quantization), plain_kv_bytes(spec, dtype, int8_kv=int8_kv))


def plain_formats(dtype: torch.dtype, quantization: str | None = None) -> WeightFormatFactory:
    """Return formats without memory for ``plain_storage``. Raises ``InvalidOption``."""
    dense = 8.0 * dtype.itemsize
    if quantization is not None and quantization not in QUANTIZED_BITS:
        raise InvalidOption("unknown quantization", got=show(quantization), remedy=nearest(quantization, QUANTIZED_BITS))
    bits = dense if quantization is None else QUANTIZED_BITS[quantization]
    return MetaFormatFactory(TorchOps(), dtype, bits, dense, _no_stored_matrix)


def plain_kv_bytes(spec: DecoderSpec, dtype: torch.dtype, *, int8_kv: bool = False) -> KvBytes:
    """Return the bytes of keys and values, and of the scales of int8, without padding."""
    shapes = {(layer.attention.num_kv_heads, layer.attention.head_dim) for layer in spec.layers}
    head_bytes = {dim: dim + INT8_SCALE_BYTES if int8_kv else dim * dtype.itemsize for _, dim in shapes}
    return {(heads, dim): 2.0 * heads * head_bytes[dim] for heads, dim in shapes}


def block_bytes(groups: tuple[KvGroup, ...], block_size: int, kv_bytes: KvBytes) -> int:
    """Return the bytes of one block of every group."""
    return round(sum(len(group.layers) * block_size * kv_bytes[group.num_kv_heads, group.head_dim] for group in groups))


def _no_stored_matrix(in_features: int, out_features: int, parts: object) -> WeightFormat:
    raise AssertionError("a configuration alone has no stored matrices")
