"""``smaller_config``: the configuration of a smaller model of the same family and vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.checkpoints.json_values import is_integer
from hasten.core.errors import InvalidOption, UnsupportedModel, show

DEFAULT_HIDDEN = 128  # about


def smaller_config(config: Mapping[str, Any], *, layers: int, hidden: int | None, remedy: str) -> dict[str, Any]:
    """Return a configuration like ``config`` with fewer layers, a smaller hidden size and tied embeddings.

    Heads and MLP keep their proportions. ``hidden`` None: the multiple of the head size nearest to ``DEFAULT_HIDDEN``. Raises
    ``InvalidOption`` with this ``remedy`` for a size that is no multiple of the head size, or a larger model, and
    ``UnsupportedModel`` for a configuration without sizes.
    """
    gpt2 = "n_embd" in config
    size_name, layers_name = ("n_embd", "n_layer") if gpt2 else ("hidden_size", "num_hidden_layers")
    size, num_layers = _size(config, size_name), _size(config, layers_name)
    num_heads = _size(config, "n_head" if gpt2 else "num_attention_heads")
    head_dim = int(config.get("head_dim") or max(1, size // num_heads))
    if hidden is None:
        hidden = max(1, round(DEFAULT_HIDDEN / head_dim)) * head_dim
    if hidden % head_dim or not 1 <= hidden <= size or not 1 <= layers <= num_layers:
        raise InvalidOption(
            "the sizes are not those of a smaller model of the same shape",
            got=f"layers={layers}, hidden={hidden}",
            allowed=f"up to {num_layers} layers, and multiples of {head_dim} (the size of a head) up to {size}",
            remedy=remedy,
        )
    small = {**config, size_name: hidden, layers_name: layers, "tie_word_embeddings": True}
    if config.get("layer_types"):
        small["layer_types"] = list(config["layer_types"])[:layers]
    heads = hidden // head_dim
    if gpt2:
        inner = config.get("n_inner")
        return {**small, "n_head": heads, "n_inner": None if inner is None else _scaled_inner(int(inner), hidden, size)}
    max_kv_heads = max(1, heads * int(config.get("num_key_value_heads") or num_heads) // num_heads)
    small["num_attention_heads"] = heads
    small["num_key_value_heads"] = next(count for count in range(max_kv_heads, 0, -1) if heads % count == 0)
    small["intermediate_size"] = _scaled_inner(_size(config, "intermediate_size"), hidden, size)
    if config.get("max_window_layers") is not None:
        small["max_window_layers"] = min(int(config["max_window_layers"]), layers)
    return small


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not is_integer(value, 1):
        raise UnsupportedModel(f"the model's config.json has no {name} to derive a smaller model from", got=show(value))
    return int(value)


def _scaled_inner(inner: int, hidden: int, size: int) -> int:
    """Return ``inner`` · hidden / size, rounded up to a multiple of 32."""
    return -(-inner * hidden // size // 32) * 32
