"""What Llama, Mistral and the Qwen families share: configuration keys and weight names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from hasten.models.config import GELU, MAX_SIZE, ConfigView
from hasten.models.family import ModelFamily
from hasten.models.rope_config import longest_context, read_rotary
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap, WeightSource, fused

WithSizes = Callable[[Mapping[str, Any], DecoderSpec], dict[str, Any]]


def llama_like_family(
    read_spec: Callable[[ConfigView], DecoderSpec],
    with_sizes: WithSizes | None = None,
    sizes_fault: Callable[[DecoderSpec], str | None] = lambda spec: None,
) -> ModelFamily:
    ignored = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")
    with_sizes = with_sizes or llama_like_sizes
    return ModelFamily(read_spec, llama_like_weights, "model.", ignored, with_sizes=with_sizes, sizes_fault=sizes_fault)


def llama_like_spec(
    view: ConfigView,
    *,
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
    """Read the configuration of a Llama-like family.

    The sizes are the family's defaults for missing keys; the other defaults are common to all families.
    ``num_kv_heads`` None: as many as query heads. ``head_dim`` None: the hidden size divided by the number of heads.
    """
    hidden_size = view.integer("hidden_size", 4096)
    max_positions = view.integer("max_position_embeddings", max_positions)
    norm = NormSpec("rms", view.number("rms_norm_eps", 1e-6))
    intermediate_size = view.integer("intermediate_size", intermediate_size)
    activation = view.choice("hidden_act", "silu", {"silu": "silu", "swish": "silu", **GELU})
    mlp = MlpSpec(intermediate_size, activation, gated=True, bias=mlp_bias)
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
    windows = windows or [None] * view.num_layers("num_hidden_layers", 32)
    return DecoderSpec(
        model_type=view.values["model_type"],
        vocab_size=view.integer("vocab_size", vocab_size),
        hidden_size=hidden_size,
        max_positions=longest_context(view, attention.rotary, max_positions),
        layers=tuple(LayerSpec(dataclasses.replace(attention, window=window), mlp) for window in windows),
        norm=norm,
        tie_word_embeddings=view.flag("tie_word_embeddings", False),
    )


def _read_heads(view: ConfigView, hidden_size: int, default_kv: int | None, default_dim: int | None) -> tuple[int, int, int]:
    """Return the numbers of query heads and key/value heads, and the head dim."""
    num_heads = view.integer("num_attention_heads", 32)
    if view.values.get("head_dim") is None and default_dim is None and hidden_size % num_heads:
        view.refuse("hidden_size", f"a multiple of num_attention_heads={num_heads} when head_dim is not given")
    head_dim = view.integer("head_dim", default_dim or max(hidden_size // num_heads, 1))
    # A null key means multi-head attention, whatever the family's default for a missing key is.
    num_kv_heads = view.optional_integer("num_key_value_heads", default_kv) or num_heads
    if num_heads * head_dim > MAX_SIZE:
        view.refuse("num_attention_heads", f"up to {MAX_SIZE // head_dim} heads of {head_dim}")
        num_heads = 1
    if num_heads % num_kv_heads:
        view.refuse("num_key_value_heads", f"a divisor of num_attention_heads={num_heads}")
        num_kv_heads = 1
    return num_heads, num_kv_heads, head_dim


def qwen_windows(view: ConfigView) -> list[int | None]:
    """Return the sliding window of each layer; None is full attention."""
    num_layers = view.num_layers("num_hidden_layers", 32)
    window = view.optional_integer("sliding_window", 4096) if view.flag("use_sliding_window", False) else None
    first_windowed = view.integer("max_window_layers", 28, low=0)
    layer_types = view.values.get("layer_types")
    if layer_types is None:
        return [window if index >= first_windowed else None for index in range(num_layers)]
    allowed = ("full_attention", "sliding_attention") if window is not None else ("full_attention",)
    if not isinstance(layer_types, list) or len(layer_types) != num_layers or any(kind not in allowed for kind in layer_types):
        view.refuse("layer_types", f"{num_layers} of {' or '.join(allowed)}")
        return [None] * num_layers
    return [window if kind == "sliding_attention" else None for kind in layer_types]


def llama_like_sizes(config: Mapping[str, Any], spec: DecoderSpec) -> dict[str, Any]:
    """Return the configuration with the sizes of ``spec``."""
    attention = spec.layers[0].attention
    sizes = {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.layers[0].mlp.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
    }
    return {**config, **sizes}


def qwen_sizes(config: Mapping[str, Any], spec: DecoderSpec) -> dict[str, Any]:
    """Return the configuration with the sizes of ``spec`` and the window of each layer."""
    sized = llama_like_sizes(config, spec)
    is_windowed = [layer.attention.window is not None for layer in spec.layers]
    if config.get("layer_types") is not None or any(is_windowed):
        sized["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in is_windowed]
    if any(is_windowed):
        sized["max_window_layers"] = is_windowed.index(True)  # the first layer with a window, for programs that read no layer_types
    return sized


def llama_like_weights(spec: DecoderSpec) -> WeightMap:
    sources = [
        WeightSource("model.embed_tokens.weight", "embedding.format.weight"),
        WeightSource("model.norm.weight", "norm.weight"),
    ]
    if not spec.tie_word_embeddings:
        sources.append(WeightSource("lm_head.weight", "lm_head.format.weight"))
    for index, layer in enumerate(spec.layers):
        sources += layer_weights(f"model.layers.{index}", f"layers.{index}", layer)
    return tuple(sources)


def layer_weights(source: str, target: str, layer: LayerSpec) -> list[WeightSource]:
    """Return the weights of the layer ``source`` of a checkpoint and ``target`` of the decoder."""
    attention, mlp = layer.attention, layer.mlp
    qkv = tuple(f"{source}.self_attn.{name}_proj" for name in "qkv")
    qkv_sizes = (attention.q_size, attention.kv_size, attention.kv_size)
    gate_up = (f"{source}.mlp.gate_proj", f"{source}.mlp.up_proj")
    gate_up_sizes = (mlp.intermediate_size, mlp.intermediate_size)
    sources = [
        WeightSource(f"{source}.input_layernorm.weight", f"{target}.attention_norm.weight"),
        WeightSource(f"{source}.post_attention_layernorm.weight", f"{target}.mlp_norm.weight"),
        *fused([f"{name}.weight" for name in qkv], qkv_sizes, f"{target}.attention.qkv.format.weight"),
        WeightSource(f"{source}.self_attn.o_proj.weight", f"{target}.attention.out.format.weight"),
        *fused([f"{name}.weight" for name in gate_up], gate_up_sizes, f"{target}.mlp.up.format.weight"),
        WeightSource(f"{source}.mlp.down_proj.weight", f"{target}.mlp.down.format.weight"),
    ]
    if attention.qkv_bias:
        sources += fused([f"{name}.bias" for name in qkv], qkv_sizes, f"{target}.attention.qkv.bias")
    if attention.out_bias:
        sources.append(WeightSource(f"{source}.self_attn.o_proj.bias", f"{target}.attention.out.bias"))
    if attention.qk_norm is not None:
        sources += [
            WeightSource(f"{source}.self_attn.{name}.weight", f"{target}.attention.{name}.weight") for name in ("q_norm", "k_norm")
        ]
    if mlp.bias:
        sources += fused([f"{name}.bias" for name in gate_up], gate_up_sizes, f"{target}.mlp.up.bias")
        sources.append(WeightSource(f"{source}.mlp.down_proj.bias", f"{target}.mlp.down.bias"))
    return sources
