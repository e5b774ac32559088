"""A smaller configuration has the proportions of the one that it is made from."""

from __future__ import annotations

import pytest

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption, UnsupportedModel
from hasten.models.family import find_family
from hasten.training.smaller_config import smaller_config

REMEDY = "Choose --sizes"


@pytest.mark.parametrize(("layers", "hidden"), [(1, 24), (1, 128), (9, 32)])
def test_a_model_that_is_not_smaller_is_refused(tiny, layers, hidden):
    config = Checkpoint.open(tiny("llama-gqa")).config
    with pytest.raises(InvalidOption, match=rf"hidden={hidden}.*up to 3 layers, and multiples of 16.*up to 64"):
        smaller_config(config, remedy=REMEDY, layers=layers, hidden=hidden)


@pytest.mark.parametrize(("head", "hidden"), [(256, 256), (96, 96), (80, 160), (64, 128), (16, 128), (128, 128), (48, 144)])
def test_the_default_hidden_size_is_the_multiple_of_the_head_size_nearest_to_128(tiny, head, hidden):
    """Compared with a search of all multiples. The refusal of another size names the option."""
    config = {**Checkpoint.open(tiny("llama-gqa")).config, "hidden_size": 8 * head, "head_dim": head}
    assert min(range(head, 8 * head + 1, head), key=lambda size: abs(size - 128)) == hidden
    small = smaller_config(config, remedy=REMEDY, layers=1, hidden=None)
    assert (small["hidden_size"], small["num_attention_heads"]) == (hidden, hidden // head)
    with pytest.raises(InvalidOption, match=rf"multiples of {head} .* --sizes"):
        smaller_config(config, remedy=REMEDY, layers=1, hidden=hidden + 1)


def test_the_model_keeps_the_proportions(tiny):
    config = Checkpoint.open(tiny("llama-gqa")).config
    small = smaller_config(config, remedy=REMEDY, layers=1, hidden=32)
    spec = find_family(small).spec(small)
    (layer,) = spec.layers
    assert (layer.attention.num_heads, layer.attention.num_kv_heads, layer.attention.head_dim) == (2, 1, 16)
    assert (spec.hidden_size, layer.mlp.intermediate_size, spec.vocab_size) == (32, 64, 101)


@pytest.mark.parametrize("value", [None, "64", -1, True, 1.5])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
def test_a_configuration_without_a_size_is_refused(tiny, name, value):
    config = {**Checkpoint.open(tiny("llama-gqa")).config, name: value}
    with pytest.raises(UnsupportedModel, match=f"no {name} to derive"):
        smaller_config(config, remedy=REMEDY, layers=1, hidden=32)
