"""GPT-2 (Radford et al., 2019): learned positions, layer norms with biases, plain feed-forward.

Its matrices are stored as [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from hasten.models.config import GELU, ConfigView
from hasten.models.family import ModelFamily
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap, WeightSource

_NORMS = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}
_LINEARS = {"attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}


def read_spec(view: ConfigView) -> DecoderSpec:
    # reorder_and_upcast_attn needs no support: it asks for float32 inside attention, which every backend has.
    view.require_off(("add_cross_attention",))
    hidden_size, num_heads = view.integer("n_embd", 768), view.integer("n_head", 12)
    if hidden_size % num_heads:
        view.refuse("n_embd", f"a multiple of n_head={num_heads}")
    head_dim = max(hidden_size // num_heads, 1)
    scale = head_dim**-0.5 if view.flag("scale_attn_weights", True) else 1.0
    divide_by_layer = view.flag("scale_attn_by_inverse_layer_idx", False)
    scales = [scale / (index + 1 if divide_by_layer else 1) for index in range(view.num_layers("n_layer", 12))]
    activation = view.choice("activation_function", "gelu_new", GELU)
    mlp = MlpSpec(view.integer("n_inner", 4 * hidden_size), activation, gated=False, bias=True)
    return DecoderSpec(
        model_type=view.values["model_type"],
        vocab_size=view.integer("vocab_size", 50_257),
        hidden_size=hidden_size,
        max_positions=view.integer("n_positions", 1_024),
        layers=tuple(
            LayerSpec(AttentionSpec(num_heads, num_heads, head_dim, scale=scale, qkv_bias=True, out_bias=True), mlp)
            for scale in scales
        ),
        norm=NormSpec("layer", view.number("layer_norm_epsilon", 1e-5)),
        tie_word_embeddings=view.flag("tie_word_embeddings", True),
        learned_positions=True,
    )


def weights(spec: DecoderSpec) -> WeightMap:
    """The checkpoint already fuses q, k and v, in this order."""
    sources = [
        WeightSource("transformer.wte.weight", "embedding.format.weight"),
        WeightSource("transformer.wpe.weight", "positions.format.weight"),
        WeightSource("transformer.ln_f.weight", "norm.weight"),
        WeightSource("transformer.ln_f.bias", "norm.bias"),
    ]
    if not spec.tie_word_embeddings:
        sources.append(WeightSource("lm_head.weight", "lm_head.format.weight"))
    for index in range(spec.num_layers):
        source, target = f"transformer.h.{index}", f"layers.{index}"
        for name, norm in _NORMS.items():
            sources += [WeightSource(f"{source}.{name}.{part}", f"{target}.{norm}.{part}") for part in ("weight", "bias")]
        for name, linear in _LINEARS.items():
            sources.append(WeightSource(f"{source}.{name}.weight", f"{target}.{linear}.format.weight", transposed=True))
            sources.append(WeightSource(f"{source}.{name}.bias", f"{target}.{linear}.bias"))
    return tuple(sources)


def with_sizes(config: Mapping[str, Any], spec: DecoderSpec) -> dict[str, Any]:
    sizes = {
        "n_embd": spec.hidden_size,
        "n_layer": spec.num_layers,
        "n_head": spec.layers[0].attention.num_heads,
        "n_inner": spec.layers[0].mlp.intermediate_size,
    }
    return {**config, **sizes}


def sizes_fault(spec: DecoderSpec) -> str | None:
    """The configuration has no head size: it is the hidden size divided by the number of heads."""
    attention = spec.layers[0].attention
    if attention.num_kv_heads == attention.num_heads and spec.hidden_size == attention.q_size:
        return None
    return f"a hidden size of {attention.head_dim} per head, so heads and width are pruned together"


FAMILY = ModelFamily(
    read_spec,
    weights,
    "transformer.",
    (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    with_sizes=with_sizes,
    sizes_fault=sizes_fault,
)
