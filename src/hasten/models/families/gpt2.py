"""GPT-2 (Radford et al., 2019): learned positions, layer norms with biases, plain feed-forward, matrices stored [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from hasten.models.activation import GELU
from hasten.models.config import ConfigView
from hasten.models.family import ModelFamily
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap, WeightSource


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """``reorder_and_upcast_attn`` asks for float32 inside attention, which every backend has anyway."""
    view = ConfigView(config)
    view.require_off(("add_cross_attention", "quantization_config"))
    hidden_size, num_heads = view.integer("n_embd", 768), view.integer("n_head", 12)
    if hidden_size % num_heads:
        view.refuse("n_embd", f"a multiple of n_head={num_heads}")
    head_dim = max(hidden_size // num_heads, 1)
    scale = head_dim**-0.5 if view.flag("scale_attn_weights", True) else 1.0
    by_depth = view.flag("scale_attn_by_inverse_layer_idx", False)
    mlp = MlpSpec(
        view.integer("n_inner", 4 * hidden_size),
        view.choice("activation_function", "gelu_new", GELU),
        gated=False,
        bias=True,
    )
    num_layers = view.integer("n_layer", 12)
    found = DecoderSpec(
        family="gpt2",
        vocab_size=view.integer("vocab_size", 50_257),
        hidden_size=hidden_size,
        max_positions=view.integer("n_positions", 1_024),
        layers=tuple(
            LayerSpec(
                AttentionSpec(
                    num_heads, num_heads, head_dim, scale=scale / (index + 1 if by_depth else 1), qkv_bias=True, out_bias=True
                ),
                mlp,
            )
            for index in range(num_layers)
        ),
        norm=NormSpec("layer", view.number("layer_norm_epsilon", 1e-5)),
        tied=view.flag("tie_word_embeddings", True),
        learned_positions=True,
    )
    view.check()
    return found


def weights(spec: DecoderSpec) -> WeightMap:
    """q, k and v are fused in the checkpoint already, in this order."""
    sources = [
        WeightSource("transformer.wte.weight", "embedding.format.weight"),
        WeightSource("transformer.wpe.weight", "positions.format.weight"),
        WeightSource("transformer.ln_f.weight", "norm.weight"),
        WeightSource("transformer.ln_f.bias", "norm.bias"),
    ]
    if not spec.tied:
        sources.append(WeightSource("lm_head.weight", "lm_head.format.weight"))
    for index in range(spec.num_layers):
        theirs, ours = f"transformer.h.{index}", f"layers.{index}"
        for their_norm, our_norm in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
            sources += [WeightSource(f"{theirs}.{their_norm}.{part}", f"{ours}.{our_norm}.{part}") for part in ("weight", "bias")]
        for their_linear, our_linear in (
            ("attn.c_attn", "attention.qkv"),
            ("attn.c_proj", "attention.out"),
            ("mlp.c_fc", "mlp.up"),
            ("mlp.c_proj", "mlp.down"),
        ):
            sources.append(WeightSource(f"{theirs}.{their_linear}.weight", f"{ours}.{our_linear}.format.weight", transposed=True))
            sources.append(WeightSource(f"{theirs}.{their_linear}.bias", f"{ours}.{our_linear}.bias"))
    return tuple(sources)


FAMILY = ModelFamily(spec, weights, "transformer.", (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",))
