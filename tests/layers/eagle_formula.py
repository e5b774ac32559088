"""A reference EAGLE-3 head: the paper's formula on checkpoint tensors, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.layers.eagle import EagleHead, EagleSpec
from hasten.layers.formats.dense import Dense, DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Embedding
from hasten.layers.rotary import RotarySpec
from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from hasten.models.eagle import eagle_tensors
from hasten.ops.torch.backend import TorchOps

THETA, EPS = 50.0, 1e-3
VOCAB_SIZE, HIDDEN_SIZE, NUM_HEADS, HEAD_DIM = 23, 32, 4, 6


@dataclass(frozen=True)
class Formula:
    tensors: Mapping[str, Tensor]  # by name in the checkpoint
    embedding_VE: Tensor
    num_kv_heads: int
    norm_before_residual: bool
    window: int | None = None

    @classmethod
    def of(cls, head: EagleHead) -> Formula:
        attention = head.spec.layer.attention
        matrix = head.embedding.format
        assert isinstance(matrix, Dense)
        tensors = {name: tensor.detach().double() for name, tensor in eagle_tensors(head).items()}
        embedding_VE = matrix.weight.detach().double()
        return cls(tensors, embedding_VE, attention.num_kv_heads, head.spec.norm_before_residual, attention.window)

    def fuse(self, states: Tensor) -> Tensor:
        return states.double() @ self.tensors["fc.weight"].T

    def draft(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the hidden states of the draft tokens of a full sequence.

        ``hidden[i]`` is the hidden state at position i, and ``ids[i]`` the token after it.
        """
        layer = {name.removeprefix("layers.0."): tensor for name, tensor in self.tensors.items() if name.startswith("layers.0.")}
        normed = _rms(hidden) * layer["hidden_norm.weight"]
        attention_input = torch.cat((_rms(self.embedding_VE[ids]) * layer["input_layernorm.weight"], normed), dim=1)
        q, k, v = ((attention_input @ layer[f"self_attn.{name}_proj.weight"].T).unflatten(1, (-1, HEAD_DIM)) for name in "qkv")
        attended = self._attend(_rotated(q), _rotated(k), v)
        hidden = (normed if self.norm_before_residual else hidden) + attended @ layer["self_attn.o_proj.weight"].T
        normed = _rms(hidden) * layer["post_attention_layernorm.weight"]
        gate, up = normed @ layer["mlp.gate_proj.weight"].T, normed @ layer["mlp.up_proj.weight"].T
        return hidden + (gate / (1 + (-gate).exp()) * up) @ layer["mlp.down_proj.weight"].T

    def logits(self, hidden: Tensor) -> Tensor:
        return (_rms(hidden) * self.tensors["norm.weight"]) @ self.tensors["lm_head.weight"].T

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs = []
        for t in range(len(q)):
            heads = []
            first = 0 if self.window is None else max(0, t - self.window + 1)
            for h in range(NUM_HEADS):
                kv_head = h * self.num_kv_heads // NUM_HEADS
                scores = [float(q[t, h] @ k[s, kv_head]) / math.sqrt(HEAD_DIM) for s in range(first, t + 1)]
                powers = [math.exp(score - max(scores)) for score in scores]
                heads.append(sum(p * v[first + i, kv_head] for i, p in enumerate(powers)) / sum(powers))
            outputs.append(torch.cat(heads))
        return torch.stack(outputs)


def random_head(
    *, num_kv_heads: int = 2, norm_before_residual: bool = False, window: int | None = None, seed: int = 0
) -> EagleHead:
    """Return a small head with its own embedding and random weights."""
    rotary = RotarySpec(theta=THETA, dim=HEAD_DIM)
    attention = AttentionSpec(NUM_HEADS, num_kv_heads, HEAD_DIM, scale=HEAD_DIM**-0.5, window=window, rotary=rotary)
    spec = EagleSpec(
        hidden_size=HIDDEN_SIZE,
        target_size=20,
        target_vocab_size=VOCAB_SIZE,
        draft_vocab_size=11,
        aux_layers=(1, 2, 3),
        layer=LayerSpec(attention, MlpSpec(40, "silu", gated=True)),
        norm=NormSpec("rms", EPS),
        norm_before_residual=norm_before_residual,
    )
    layer_context = LayerContext(TorchOps(), DenseFormatFactory(TorchOps(), torch.float32), torch.float32)
    head = EagleHead(spec, Embedding(layer_context.formats.table(VOCAB_SIZE, HIDDEN_SIZE)), layer_context)
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.3, generator=generator)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return head


def _rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(dim=1, keepdim=True) + EPS).sqrt()


def _rotated(x: Tensor) -> Tensor:
    """Rotate the dimension pairs (i, i + D/2), as complex numbers, by position · θ^(-2i/D)."""
    half = HEAD_DIM // 2
    angles = torch.arange(len(x)).double()[:, None] * THETA ** (-2 * torch.arange(half).double() / HEAD_DIM)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)
