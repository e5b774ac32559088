"""Tiny random checkpoints of transformers: the reference for every test that runs a model.

All parameters are redrawn, because initial values hide faults: biases are 0 and norm weights 1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2_SIZES = {"vocab_size": 103, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True, slots=True)
class TinyModel:
    family: str  # as in the class names of transformers
    options: dict[str, Any] = field(default_factory=dict)
    max_shard_size: str = "1GB"


def _rope(rope_type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1_000.0, **values}}


_WINDOW = {"use_sliding_window": True, "sliding_window": 8}
_MIXED_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

TINY: dict[str, TinyModel] = {
    "llama-gqa": TinyModel("Llama"),
    "llama-mha-tied": TinyModel("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True, "vocab_size": 97}),
    "llama-mqa-bias": TinyModel("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": TinyModel("Llama", {"head_dim": 24, "rms_norm_eps": 1e-3}),
    "llama-gelu": TinyModel("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-linear": TinyModel("Llama", _rope("linear", factor=4.0)),
    "llama-dynamic": TinyModel("Llama", _rope("dynamic", factor=2.0)),
    "llama-yarn": TinyModel("Llama", _rope("yarn", factor=8.0, original_max_position_embeddings=32)),
    "llama-llama3": TinyModel(
        "Llama",
        _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "llama-sharded": TinyModel("Llama", {"tie_word_embeddings": True}, max_shard_size="60KB"),
    "qwen2-tied": TinyModel("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window-from-layer-1": TinyModel("Qwen2", {**_WINDOW, "max_window_layers": 1}),
    "qwen2-mixed-window": TinyModel("Qwen2", {**_WINDOW, "num_hidden_layers": 4, "layer_types": _MIXED_LAYER_TYPES}),
    "qwen3-gqa": TinyModel("Qwen3", {"head_dim": 24}),
    "qwen3-tied-bias": TinyModel("Qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-mixed-window": TinyModel(
        "Qwen3", {**_WINDOW, "head_dim": 16, "num_hidden_layers": 4, "layer_types": _MIXED_LAYER_TYPES}
    ),
    "mistral-window": TinyModel("Mistral", {"sliding_window": 7}),
    "mistral-full": TinyModel("Mistral", {"sliding_window": None, "head_dim": 8, "vocab_size": 131}),
    "gpt2": TinyModel("GPT2"),
    "gpt2-untied-gelu": TinyModel(
        "GPT2",
        {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 80, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt2-unscaled": TinyModel("GPT2", {"scale_attn_weights": False, "n_head": 2, "layer_norm_epsilon": 1e-3}),
}


def tiny_checkpoint(name: str, folder: Path) -> Path:
    """Return ``folder/name``, written at the first call. The weights are the same in every run."""
    path = folder / name
    if not path.exists():
        tiny_reference(name).save_pretrained(path, max_shard_size=TINY[name].max_shard_size)
    return path


def tiny_reference(name: str) -> PreTrainedModel:
    """Return the model in transformers, with eager attention. float32"""
    tiny = TINY[name]
    sizes = GPT2_SIZES if tiny.family == "GPT2" else SIZES
    config = getattr(transformers, f"{tiny.family}Config")(**{**sizes, **IDS, **tiny.options}, attn_implementation="eager")
    model: PreTrainedModel = getattr(transformers, f"{tiny.family}{'LMHeadModel' if tiny.family == 'GPT2' else 'ForCausalLM'}")(
        config
    )
    redraw(model, zlib.crc32(name.encode()))
    return model.eval().requires_grad_(False)


def redraw(model: torch.nn.Module, seed: int) -> None:
    """Draw matrices with std 0.25, biases with std 0.5 and norm weights uniformly in [0.5, 1.5)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)


def word_tokenizer(num_tokens: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token i is the word ``wi``; ``w2`` is the end-of-sequence token."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(num_tokens)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w2")
