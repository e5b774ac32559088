"""Ratios become the nearest sizes that a checkpoint of the family can express."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tests.tiny_models import TINY

from hasten.compress.prune.options import HEADS, LAYERS, NEURONS, PARTS, WIDTH
from hasten.compress.prune.pruned_config import pruned_config
from hasten.compress.prune.shape import Shape
from hasten.compress.prune.structured import check_target
from hasten.compress.prune.target_shape import shape_for_ratio, size_notes
from hasten.core.errors import InvalidOption
from hasten.models.family import find_family
from hasten.training.trainable_model import TrainableModel

RATIOS = (0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 0.99)
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12}


def spec_of(config):
    return find_family(config).spec(config)


def sizes(shape):
    return shape.num_layers, shape.hidden_size, shape.num_heads, shape.num_kv_heads, shape.intermediate_size


@pytest.mark.parametrize(
    ("config", "parts", "ratio", "expected"),
    [
        (LLAMA_8B, PARTS, 0.0, (32, 4096, 32, 8, 14_336)),
        (LLAMA_8B, PARTS, 0.25, (24, 3072, 24, 6, 10_752)),
        (LLAMA_8B, (HEADS,), 0.3, (32, 4096, 24, 6, 14_336)),  # 0.25 is within a sixteenth of the wanted share
        (LLAMA_8B, (NEURONS,), 0.1, (32, 4096, 32, 8, 12_928)),  # 12,902.4 in steps of 128
        (LLAMA_8B, (WIDTH,), 0.99, (32, 128, 32, 8, 14_336)),
        (LLAMA_8B, (LAYERS,), 0.99, (1, 4096, 32, 8, 14_336)),
        (LLAMA_8B | {"num_key_value_heads": 2}, (HEADS,), 0.25, (32, 4096, 24, 2, 14_336)),  # 12 of 16 heads in each group
        (LLAMA_8B | {"num_key_value_heads": 2}, (HEADS,), 0.5, (32, 4096, 16, 1, 14_336)),
        (LLAMA_8B | {"num_key_value_heads": 1}, (HEADS,), 0.5, (32, 4096, 16, 1, 14_336)),
        (LLAMA_8B | {"num_attention_heads": 4, "num_key_value_heads": 2}, (HEADS,), 0.25, (32, 4096, 4, 2, 14_336)),
        (GPT2, (HEADS, WIDTH), 0.25, (12, 576, 9, 9, 3072)),
        (GPT2, (HEADS, WIDTH, NEURONS, LAYERS), 0.5, (6, 384, 6, 6, 1536)),
        (GPT2, (NEURONS,), 0.25, (12, 768, 12, 12, 2304)),
    ],
)
def test_known_models(config, parts, ratio, expected):
    assert sizes(shape_for_ratio(spec_of(config), parts, ratio)) == expected


def test_families_refuse_parts_that_go_together():
    for parts in ((HEADS,), (WIDTH,), (HEADS, LAYERS)):
        with pytest.raises(InvalidOption, match="64 per head, so heads and width are pruned together"):
            shape_for_ratio(spec_of(GPT2), parts, 0.25)


@pytest.mark.parametrize("name", TINY)
def test_every_shape_can_be_cut_and_written(tiny, name):
    model = TrainableModel.load(tiny(name))
    spec, whole = model.spec, Shape.of(model.spec)
    for ratio, count in itertools.product(RATIOS, range(1, 5)):
        for parts in itertools.combinations(PARTS, count):
            try:
                shape = shape_for_ratio(spec, parts, ratio)
            except InvalidOption:
                assert {HEADS, WIDTH} & set(parts) and ratio > 0
                assert spec.model_type == "gpt2" or name == "llama-mqa-bias"
                continue
            check_target(whole, shape)
            kept = {HEADS: shape.num_heads == whole.num_heads and shape.num_kv_heads == whole.num_kv_heads}
            kept |= {NEURONS: shape.intermediate_size == whole.intermediate_size}
            kept |= {WIDTH: shape.hidden_size == whole.hidden_size, LAYERS: shape.num_layers == whole.num_layers}
            assert all(kept[part] for part in PARTS if part not in parts or ratio == 0)
            assert shape.hidden_size % 16 == 0
            assert shape.intermediate_size % 16 == 0
            pruned_config(model.config, shape.apply(spec))
            assert len(size_notes(spec, shape, parts, ratio)) == len(parts)


def test_neurons_are_the_nearest_multiple():
    """Brute force over every size of a matrix."""
    for size in (16, 96, 130, 256, 300, 520, 11_008):
        spec = spec_of(LLAMA_8B | {"intermediate_size": size})
        multiple = max([m for m in (16, 32, 64, 128) if size >= 8 * m], default=16)
        allowed = [other for other in range(1, size + 1) if other % multiple == 0 or other == size]
        for ratio in torch.linspace(0, 0.98, 23, dtype=torch.float64).tolist():
            found = shape_for_ratio(spec, (NEURONS,), ratio).intermediate_size
            wanted = (1 - ratio) * size
            assert found in allowed
            assert abs(found - wanted) <= min(abs(other - wanted) for other in allowed) + 1e-6


def test_one_group_is_in_the_singular():
    spec = spec_of(LLAMA_8B | {"num_attention_heads": 4, "num_key_value_heads": 2})
    shape = dataclasses.replace(Shape.of(spec), num_heads=2, num_kv_heads=1)
    assert size_notes(spec, shape, (HEADS,), 0.5) == ["heads: 2 of 4 heads stay in 1 group (50.0%; wanted 50.0%)"]


def test_notes_say_what_was_rounded():
    spec = spec_of(LLAMA_8B | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 100})
    shape = dataclasses.replace(Shape.of(spec), num_layers=24)
    assert size_notes(spec, shape, (HEADS, LAYERS), 0.25) == [
        "heads: 4 of 4 heads stay in 2 groups (100.0%; wanted 75.0%)",
        "layers: 24 of 32 layers stay (75.0%; wanted 75.0%)",
        "intermediate_size=100 is no multiple of 16, so products pad it",
    ]
