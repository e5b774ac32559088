"""What Llama, Mistral and the Qwen families have in common: the shape of their configuration and their weight names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from hasten.models.activation import GATED
from hasten.models.config import ConfigView
from hasten.models.rope import longest_context, read_rotary
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap, WeightSource, fused

PREFIX = "model."
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def llama_like_spec(
    view: ConfigView,
    *,
    family: str,
    vocab_size: int,
    intermediate_size: int,
    num_kv_heads: int | None,
    max_positions: int,
    head_dim: int | None = None,
    windows: Sequence[int | None] | None = None,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
) -> DecoderSpec:
    """Named values are the family's defaults, used where its configuration says nothing; the rest is alike in all of them.

    ``num_kv_heads`` None: as many as there are query heads; ``head_dim`` None: the hidden size shared among the heads.
    """
    view.require_off(("quantization_config",))
    hidden_size = view.integer("hidden_size", 4096)
    max_positions = view.integer("max_position_embeddings", max_positions)
    norm = NormSpec("rms", view.number("rms_norm_eps", 1e-6))
    size = view.integer("intermediate_size", intermediate_size)
    mlp = MlpSpec(size, view.choice("hidden_act", "silu", GATED), gated=True, bias=mlp_bias)
    num_heads, num_kv_heads, head_dim = _read_heads(view, hidden_size, num_kv_heads, head_dim)
    attention = AttentionSpec(
        num_heads,
        num_kv_heads,
        head_dim,
        scale=head_dim**-0.5,
        rotary=read_rotary(view, head_dim, max_positions),
        qk_norm=norm if qk_norm else None,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
    )
    windows = windows or [None] * view.integer("num_hidden_layers", 32)
    spec = DecoderSpec(
        family=family,
        vocab_size=view.integer("vocab_size", vocab_size),
        hidden_size=hidden_size,
        max_positions=longest_context(view, attention.rotary, max_positions),
        layers=tuple(LayerSpec(dataclasses.replace(attention, window=window), mlp) for window in windows),
        norm=norm,
        tied=view.flag("tie_word_embeddings", False),
    )
    view.check()
    return spec


def _read_heads(view: ConfigView, hidden_size: int, default_kv: int | None, default_dim: int | None) -> tuple[int, int, int]:
    """Query heads, key/value heads and the head dim."""
    num_heads = view.integer("num_attention_heads", 32)
    if view.values.get("head_dim") is None and default_dim is None and hidden_size % num_heads:
        view.refuse("hidden_size", f"a multiple of num_attention_heads={num_heads} when head_dim is not given")
    head_dim = view.integer("head_dim", default_dim or max(hidden_size // num_heads, 1))
    alike = view.values.get("num_key_value_heads", default_kv) is None
    num_kv_heads = num_heads if alike else view.integer("num_key_value_heads", default_kv or num_heads)
    if num_heads % num_kv_heads:
        view.refuse("num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
        num_kv_heads = 1
    return num_heads, num_kv_heads, head_dim


def qwen_windows(view: ConfigView) -> list[int | None]:
    """The window of each layer: from ``layer_types``, or from ``max_window_layers`` on, if sliding windows are used at all."""
    num_layers = view.integer("num_hidden_layers", 32)
    window = view.optional_integer("sliding_window", 4096) if view.flag("use_sliding_window", False) else None
    first = view.integer("max_window_layers", 28, low=0)
    kinds = view.values.get("layer_types")
    if kinds is None:
        return [window if index >= first else None for index in range(num_layers)]
    known = ("full_attention", "sliding_attention") if window is not None else ("full_attention",)
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in known for kind in kinds):
        view.refuse("layer_types", f"{num_layers} of {' or '.join(known)}")
        return [None] * num_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def llama_like_weights(spec: DecoderSpec) -> WeightMap:
    sources = [
        WeightSource("model.embed_tokens.weight", "embedding.format.weight"),
        WeightSource("model.norm.weight", "norm.weight"),
    ]
    if not spec.tied:
        sources.append(WeightSource("lm_head.weight", "lm_head.format.weight"))
    for index, layer in enumerate(spec.layers):
        sources += layer_weights(f"model.layers.{index}", f"layers.{index}", layer)
    return tuple(sources)


def layer_weights(theirs: str, ours: str, layer: LayerSpec) -> list[WeightSource]:
    attention, mlp = layer.attention, layer.mlp
    qkv = tuple(f"{theirs}.self_attn.{name}_proj" for name in "qkv")
    gate_up = (f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
    qkv_sizes = (attention.q_size, attention.kv_size, attention.kv_size)
    gate_up_sizes = (mlp.intermediate_size, mlp.intermediate_size)
    sources = [
        WeightSource(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
        WeightSource(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight"),
        *fused(tuple(f"{name}.weight" for name in qkv), qkv_sizes, f"{ours}.attention.qkv.format.weight"),
        WeightSource(f"{theirs}.self_attn.o_proj.weight", f"{ours}.attention.out.format.weight"),
        *fused(tuple(f"{name}.weight" for name in gate_up), gate_up_sizes, f"{ours}.mlp.up.format.weight"),
        WeightSource(f"{theirs}.mlp.down_proj.weight", f"{ours}.mlp.down.format.weight"),
    ]
    if attention.qkv_bias:
        sources += fused(tuple(f"{name}.bias" for name in qkv), qkv_sizes, f"{ours}.attention.qkv.bias")
    if attention.out_bias:
        sources.append(WeightSource(f"{theirs}.self_attn.o_proj.bias", f"{ours}.attention.out.bias"))
    if attention.qk_norm is not None:
        sources.append(WeightSource(f"{theirs}.self_attn.q_norm.weight", f"{ours}.attention.q_norm.weight"))
        sources.append(WeightSource(f"{theirs}.self_attn.k_norm.weight", f"{ours}.attention.k_norm.weight"))
    if mlp.bias:
        sources += fused(tuple(f"{name}.bias" for name in gate_up), gate_up_sizes, f"{ours}.mlp.up.bias")
        sources.append(WeightSource(f"{theirs}.mlp.down_proj.bias", f"{ours}.mlp.down.bias"))
    return sources
