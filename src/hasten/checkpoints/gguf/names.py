"""``find_layout``: the Hugging Face name and the storage of a GGUF tensor, by architecture.

The GGUF names are those of llama.cpp's ``gguf-py/gguf/tensor_mapping.py``; ``blk.3.attn_q.weight`` belongs to layer 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LLAMA_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QWEN3_LAYER = _LLAMA_LAYER | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True, slots=True)
class NameTable:
    """The tensors of an architecture, without ".weight" and ".bias"."""

    top: Mapping[str, str]
    layer: Mapping[str, str]
    layer_prefix: str = "model.layers"
    interleaved: frozenset[str] = frozenset()  # q and k whose heads have interleaved rows, as llama.cpp's rotary type NORM needs
    transposed: frozenset[str] = frozenset()  # matrices that Hugging Face stores as [in, out], and GGUF as [out, in]


NAME_TABLES = {
    "llama": NameTable(_LLAMA_TOP, _LLAMA_LAYER, interleaved=frozenset({"attn_q", "attn_k"})),
    "qwen2": NameTable(_LLAMA_TOP, _LLAMA_LAYER),
    "qwen3": NameTable(_LLAMA_TOP, _QWEN3_LAYER),
    "gpt2": NameTable(
        _GPT2_TOP, _GPT2_LAYER, "transformer.h", transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"})
    ),
}
ROPE_FACTORS = "rope_freqs.weight"
_IGNORED = re.compile(r"rope_freqs\.weight|blk\.[0-9]+\.attn_rot_embd(\.weight)?")  # settings, and tables that are computed
_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,5})\.)?(?P<part>[a-z_]+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True, slots=True)
class TensorLayout:
    name: str  # as Hugging Face calls the tensor
    interleaved: bool
    transposed: bool


def is_ignored(name: str) -> bool:
    """Return whether the tensor of this GGUF name holds no weights."""
    return _IGNORED.fullmatch(name) is not None


def find_layout(architecture: str, name: str) -> TensorLayout | None:
    """Return the layout of the tensor of this GGUF name; None if the architecture has no such tensor."""
    table, match = NAME_TABLES[architecture], _NAME.fullmatch(name)
    if match is None:
        return None
    part, layer = match["part"], match["layer"]
    stem = table.top.get(part) if layer is None else table.layer.get(part)
    if stem is None:
        return None
    prefix = "" if layer is None else f"{table.layer_prefix}.{layer}."
    # Biases have the interleaved order of their rows, and no transposed form.
    transposed = part in table.transposed and match["kind"] == "weight"
    return TensorLayout(f"{prefix}{stem}.{match['kind']}", layer is not None and part in table.interleaved, transposed)
