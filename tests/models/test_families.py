"""Configurations become the right specs, and unsupported values are refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import transformers

from hasten.core.errors import UnsupportedModel
from hasten.models.family import family_names, find_family
from hasten.models.spec import DecoderSpec

CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral", "gpt2": "GPT2"}


def _spec(family: str, **values: Any) -> DecoderSpec:
    config = {"model_type": family, **values}
    return find_family(config).spec(config)


def _filled(family: str, **values: Any) -> DecoderSpec:
    """Return the spec of the same configuration after transformers has filled in all defaults."""
    config = getattr(transformers, f"{CLASSES[family]}Config")(**values).to_dict()
    return find_family(config).spec(config)


def test_every_family_is_compared_with_transformers() -> None:
    assert set(CLASSES) == set(family_names())


@pytest.mark.parametrize("family", CLASSES)
def test_missing_keys_have_the_defaults_of_transformers(family: str) -> None:
    spec = _spec(family)
    assert dataclasses.asdict(spec) == dataclasses.asdict(_filled(family))
    assert spec.num_layers > 0


@pytest.mark.parametrize(
    "family, values",
    [
        ("llama", {"num_attention_heads": 16}),
        ("llama", {"num_attention_heads": 16, "num_key_value_heads": None, "head_dim": None}),
        ("qwen2", {"use_sliding_window": True}),
        ("qwen2", {"sliding_window": 100}),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 0, "num_hidden_layers": 3}),
        ("qwen3", {"num_attention_heads": 8, "num_key_value_heads": None}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"num_attention_heads": 16, "head_dim": None}),
        ("gpt2", {"n_embd": 96, "n_head": 3}),
    ],
)
def test_partial_configurations_are_filled_as_in_transformers(family: str, values: dict[str, Any]) -> None:
    assert _spec(family, **values) == _filled(family, **values)


def test_windows_are_read_per_layer() -> None:
    def windows(spec: DecoderSpec) -> list[int | None]:
        return [layer.attention.window for layer in spec.layers]

    assert windows(_spec("mistral", num_hidden_layers=2, sliding_window=9)) == [9, 9]
    assert windows(_spec("qwen2", num_hidden_layers=3, sliding_window=9)) == [None] * 3
    on = {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 9}
    assert windows(_spec("qwen2", **on, max_window_layers=2)) == [None, None, 9]
    layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(_spec("qwen3", **on, layer_types=layer_types)) == [9, None, 9]


@pytest.mark.parametrize(
    "family, values, expected_parts",
    [
        ("llama", {"hidden_act": "relu"}, ["hidden_act='relu'", "silu"]),
        ("gpt2", {"activation_function": "silu"}, ["activation_function='silu'", "gelu_new"]),
        ("gpt2", {"add_cross_attention": True}, ["add_cross_attention=True"]),
        ("qwen2", {"use_mrope": True}, ["use_mrope=True"]),
        ("mistral", {"layer_types": ["full_attention"]}, ["layer_types"]),
        ("qwen2", {"layer_types": ["full_attention"]}, ["layer_types", "32"]),
        ("qwen3", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, ["layer_types", "full_attention"]),
        ("qwen2", {"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}, ["chunked_attention"]),
        ("llama", {"num_key_value_heads": 5}, ["num_key_value_heads=5", "divisor of num_attention_heads=32"]),
        ("llama", {"num_attention_heads": 7}, ["hidden_size=None", "multiple of num_attention_heads=7"]),
        ("llama", {"head_dim": 33}, ["head_dim=33", "even"]),
        ("gpt2", {"n_embd": 100}, ["n_embd=100", "n_head=12"]),
        (
            "llama",
            {"hidden_size": -1, "vocab_size": "many", "rms_norm_eps": 0},
            ["hidden_size=-1", "vocab_size='many'", "rms_norm_eps=0"],
        ),
        ("llama", {"tie_word_embeddings": 1, "num_hidden_layers": 2.0}, ["tie_word_embeddings=1", "num_hidden_layers=2.0"]),
    ],
)
def test_unsupported_values_are_refused_by_name(family: str, values: dict[str, Any], expected_parts: list[str]) -> None:
    with pytest.raises(UnsupportedModel) as error:
        _spec(family, **values)
    assert all(part in str(error.value) for part in expected_parts), str(error.value)
