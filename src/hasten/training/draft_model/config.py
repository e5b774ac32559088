"""The configuration of a small model out of that of a large one, as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.core.errors import InvalidOption

HIDDEN = 128  # about the hidden size where nobody says
# Lists with one entry per layer.
_PER_LAYER = ("layer_types",)


def draft_config(config: Mapping[str, Any], *, layers: int, hidden: int | None) -> dict[str, Any]:
    """Fewer layers, of a smaller hidden size; the shape of heads and feed-forward stays in proportion, embeddings are tied.

    Without ``hidden`` the size is as many whole heads, at least one, as come nearest to ``HIDDEN``.
    Raises ``InvalidOption`` if the size cannot be shared among heads like the target's, or the draft would not be the smaller.
    """
    gpt2 = "n_embd" in config
    size_name, layers_name = ("n_embd", "n_layer") if gpt2 else ("hidden_size", "num_hidden_layers")
    size, depth = int(config[size_name]), int(config[layers_name])
    num_heads = int(config["n_head" if gpt2 else "num_attention_heads"])
    head_dim = int(config.get("head_dim") or size // num_heads)
    if hidden is None:
        hidden = max(1, round(HIDDEN / head_dim)) * head_dim
    if hidden % head_dim or hidden > size or layers > depth:
        raise InvalidOption(
            "this is no smaller model of the target's shape",
            got=f"layers={layers}, hidden={hidden}",
            allowed=f"up to {depth} layers, and multiples of {head_dim} (the size of a head) up to {size}",
            remedy="Choose others with --layers and --hidden",
        )
    small = {**config, size_name: hidden, layers_name: layers, "tie_word_embeddings": True}
    small |= {name: list(config[name])[:layers] for name in _PER_LAYER if config.get(name)}
    heads = hidden // head_dim
    if gpt2:
        inner = config.get("n_inner")
        return {**small, "n_head": heads, "n_inner": None if inner is None else _scaled(int(inner), hidden, size)}
    kv_heads = int(config.get("num_key_value_heads") or num_heads)
    small |= {"num_attention_heads": heads, "num_key_value_heads": _divisor(heads, heads * kv_heads // num_heads)}
    small["intermediate_size"] = _scaled(int(config["intermediate_size"]), hidden, size)
    if config.get("max_window_layers") is not None:
        small["max_window_layers"] = min(int(config["max_window_layers"]), layers)
    return small


def _scaled(inner: int, hidden: int, size: int) -> int:
    """In proportion, rounded up to a multiple of 32."""
    return -(-inner * hidden // size // 32) * 32


def _divisor(number: int, wanted: int) -> int:
    """The largest divisor of ``number`` up to ``wanted``, at least 1."""
    return next(found for found in range(max(1, wanted), 0, -1) if number % found == 0)
