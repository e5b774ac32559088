"""The layers that stay are those of brute force with transformers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.compress.prune.masked_models import parts
from tests.tiny_models import tiny_reference
from torch import nn

from hasten.compress.prune.layer_score import influence, perplexity, random
from hasten.compress.prune.layer_subset import LayerSubset, no_tick
from hasten.training.trainable_model import TrainableModel

NAMES = ("llama-gqa", "qwen2-mixed-window", "gpt2-untied-gelu")
IDS = torch.randint(97, (4, 21), generator=torch.Generator().manual_seed(4))


def loss_with(name, kept):
    model = tiny_reference(name)
    decoder, layers = parts(model)[:2]
    setattr(decoder, layers, nn.ModuleList(getattr(decoder, layers)[index] for index in kept))
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    model.config.num_hidden_layers = len(kept)
    logits = model(IDS, use_cache=False).logits
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum"))


@pytest.mark.parametrize("name", NAMES)
def test_block_influence(tiny, monkeypatch, name):
    monkeypatch.setattr(influence, "batches", lambda ids: ids.split(3))
    model = tiny_reference(name)
    decoder, layers = parts(model)[:2]
    cosines = []
    for layer in getattr(decoder, layers):
        layer.register_forward_hook(
            lambda module, inputs, output: cosines.append(
                F.cosine_similarity(inputs[0], output[0] if isinstance(output, tuple) else output, dim=-1).mean()
            )
        )
    model(IDS, use_cache=False)
    expected = 1 - torch.stack(cosines).double()
    subset = LayerSubset.all_of(TrainableModel.load(tiny(name)))
    torch.testing.assert_close(influence.block_influence(subset, IDS, no_tick), expected, rtol=1e-4, atol=1e-6)
    for count in range(1, len(cosines) + 1):
        kept = influence.SCORE.keep(subset, count, IDS, 0, no_tick).layers
        assert kept == tuple(sorted(expected.topk(count).indices.tolist()))


@pytest.mark.parametrize("name", NAMES)
def test_perplexity_removes_the_layer_that_is_missed_least(tiny, monkeypatch, name):
    monkeypatch.setattr(perplexity, "batches", lambda ids: ids.split(3))
    subset = LayerSubset.all_of(TrainableModel.load(tiny(name)))
    kept = list(subset.layers)
    while len(kept) > 1:
        expected = {layer: loss_with(name, [other for other in kept if other != layer]) for layer in kept}
        found = perplexity.losses_without(LayerSubset(subset.model, tuple(kept)), IDS, no_tick)
        assert found.keys() == expected.keys()
        assert all(math.isclose(found[layer], expected[layer], rel_tol=1e-4) for layer in kept)
        kept.remove(min(expected, key=lambda layer: expected[layer]))
        assert perplexity.SCORE.keep(subset, len(kept), IDS, 0, no_tick).layers == tuple(kept)


def test_perplexity_reads_a_bounded_number_of_tokens(tiny, monkeypatch):
    monkeypatch.setattr(perplexity, "MAX_TOKENS", 42)
    subset = LayerSubset.all_of(TrainableModel.load(tiny("llama-gqa")))
    read = []
    monkeypatch.setattr(
        perplexity, "losses_without", lambda subset, ids, tick: read.append(ids) or dict.fromkeys(subset.layers, 0.0)
    )
    assert perplexity.SCORE.keep(subset, 2, IDS, 0, no_tick).layers == (1, 2)
    assert torch.equal(read[0], IDS[:2])


def test_random_layers_follow_the_seed(tiny):
    subset = LayerSubset.all_of(TrainableModel.load(tiny("qwen2-mixed-window")))
    kept = [random.SCORE.keep(subset, 2, IDS, seed, no_tick).layers for seed in range(20)]
    assert kept == [random.SCORE.keep(subset, 2, IDS, seed, no_tick).layers for seed in range(20)]
    assert all(first < second for first, second in kept)
    assert len(set(kept)) == 6  # every pair of four layers
