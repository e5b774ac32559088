"""From a decoder's layers to its KV groups."""

from __future__ import annotations

from hasten.kv.group import KvGroup
from hasten.models.spec import DecoderSpec


def kv_groups(spec: DecoderSpec) -> tuple[KvGroup, ...]:
    """Layers of equal window, kv heads and head dim share a group, in the order of their first layer."""
    layers: dict[tuple[int | None, int, int], list[int]] = {}
    for index, layer in enumerate(spec.layers):
        attention = layer.attention
        layers.setdefault((attention.window, attention.num_kv_heads, attention.head_dim), []).append(index)
    return tuple(KvGroup(tuple(indices), heads, dim, window) for (window, heads, dim), indices in layers.items())
