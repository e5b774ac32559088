"""The specs of layers, as plain values that a family reads from a checkpoint's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.layers.rotary import RotarySpec
from hasten.ops.base import AttentionMask

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class NormSpec:
    kind: Literal["rms", "layer"]
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # multiplies q·k
    window: int | None = None  # a query at p sees (p - window, p]; None: everything before it
    rotary: RotarySpec | None = None
    qk_norm: NormSpec | None = None  # over each head, before the rotation
    qkv_bias: bool = False
    out_bias: bool = False

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0, (self.num_heads, self.num_kv_heads)
        assert self.rotary is None or self.rotary.dim == self.head_dim, (self.rotary, self.head_dim)

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection: queries, then keys, then values."""
        return self.q_size + 2 * self.kv_size

    @property
    def mask(self) -> AttentionMask:
        return AttentionMask(scale=self.scale, window=self.window)


@dataclass(frozen=True, slots=True)
class MlpSpec:
    intermediate_size: int
    activation: Activation
    gated: bool  # activation(gate(x)) · up(x) instead of activation(up(x))
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec
    mlp: MlpSpec
