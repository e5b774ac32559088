"""Pruned checkpoints: transformers and hasten load them with equal logits, and the logits are those of a masked model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.tiny_models import TINY
from transformers import AutoModelForCausalLM

from hasten import LLM
from hasten.compress.prune.layer_score import influence
from hasten.compress.prune.layer_subset import LayerSubset, no_tick
from hasten.compress.prune.options import PARTS, PruneOptions
from hasten.compress.prune.shape import Shape
from hasten.compress.prune.structured import _find_importance, prune_model
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.training.trainable_model import TrainableModel

LIMIT = 1e-4


def options(method="activation", **others):
    return PruneOptions(method=method, ratio=0.25, parts=PARTS, **others)


def sequences(vocab_size, seed=0, shape=(3, 17)):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, ids):
    return model.decoder.head(model.hidden_states(ids).last_TE).view(*ids.shape, -1)


@torch.no_grad()
def transformers_logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model(ids, use_cache=False).logits


def smaller(model, parts):
    """Return a shape with less of each part, other than by the ratio of the package."""
    shape = Shape.of(model.spec)
    is_gpt2 = model.spec.model_type == "gpt2"
    head_dim = model.spec.layers[0].attention.head_dim
    changes = {}
    if "layers" in parts:
        changes["num_layers"] = shape.num_layers - 1
    if "neurons" in parts:
        changes["intermediate_size"] = shape.intermediate_size - 29
    if "groups" in parts or "heads" in parts:
        groups = shape.num_kv_heads - (1 if "groups" in parts and shape.num_kv_heads > 1 else 0)
        per_group = shape.num_heads // shape.num_kv_heads - (1 if "heads" in parts and shape.num_heads > shape.num_kv_heads else 0)
        changes |= {"num_kv_heads": groups, "num_heads": groups * per_group}
    if "width" in parts:
        changes["hidden_size"] = changes.get("num_heads", shape.num_heads) * head_dim if is_gpt2 else 48
    return dataclasses.replace(shape, **changes)


CASES = [("layers",), ("neurons",), ("groups",), ("heads",), ("width",), ("groups", "width")]
CASES.append(("layers", "neurons", "groups", "heads", "width"))


@pytest.mark.parametrize("name", TINY)
def test_transformers_and_hasten_load_the_same(tiny, tmp_path, name):
    model = TrainableModel.load(tiny(name))
    ids = sequences(model.spec.vocab_size)
    for parts in CASES:
        target = smaller(model, parts)
        try:
            pruned = prune_model(model, target, ids, options())
        except InvalidOption:
            attention = model.spec.layers[0].attention
            is_gpt2 = model.spec.model_type == "gpt2" and target.hidden_size != target.num_heads * attention.head_dim
            assert is_gpt2 or (attention.qkv_bias and target.hidden_size % target.num_heads), (name, parts)
            continue
        assert Shape.of(pruned.spec) == target
        folder = tmp_path / "_".join(parts)
        pruned.write(folder, dtype=torch.float32)
        loaded = TrainableModel.load(folder)
        assert loaded.spec == pruned.spec
        expected = logits(pruned, ids)
        assert torch.equal(logits(loaded, ids), expected)
        assert (transformers_logits(folder, ids) - expected).abs().max() < LIMIT, (name, parts)


@pytest.mark.parametrize("name", TINY)
def test_pruning_nothing_is_the_identity(tiny, name):
    model = TrainableModel.load(tiny(name))
    pruned = prune_model(model, Shape.of(model.spec), sequences(model.spec.vocab_size), options())
    assert pruned.spec == model.spec
    assert pruned.config == model.config
    expected = dict(model.decoder.named_parameters())
    found = dict(pruned.decoder.named_parameters())
    assert found.keys() == expected.keys()
    for key, parameter in found.items():
        assert torch.equal(parameter, expected[key]) and parameter.requires_grad
        assert parameter.data_ptr() != expected[key].data_ptr()


def test_the_model_keeps_its_highest_scores(tiny, monkeypatch):
    """Scores of one method, and a selection by brute force over all sets of one layer's groups, heads and neurons."""
    model = TrainableModel.load(tiny("llama-gqa"))
    ids = sequences(101)
    target = Shape(num_layers=3, hidden_size=48, num_heads=2, num_kv_heads=2, intermediate_size=64)
    kept = []
    monkeypatch.setattr("hasten.compress.prune.structured.cut_model", lambda model, target, selection: kept.append(selection))
    for method in ("activation", "weight", "taylor", "random"):
        prune_model(model, target, ids, options(method, seed=3))
        scores = _find_importance(method).measure(LayerSubset.all_of(model), ids, 3, no_tick)
        selection = kept.pop()
        for layer in range(3):
            heads = scores.heads_LH[layer].tolist()
            assert selection.heads_LH[layer].tolist() == [max((0, 1), key=heads.__getitem__), max((2, 3), key=heads.__getitem__)]
            neurons = scores.neurons_LF[layer].tolist()
            ranked = sorted(range(96), key=lambda neuron: -neurons[neuron])
            assert selection.neurons_LF[layer].tolist() == sorted(ranked[:64])
        channels = scores.channels_E.tolist()
        assert selection.channels_E.tolist() == sorted(sorted(range(64), key=lambda channel: -channels[channel])[:48])


def test_groups_leave_with_their_query_heads(tiny, monkeypatch):
    model = TrainableModel.load(tiny("llama-gqa"))
    target = dataclasses.replace(Shape.of(model.spec), num_heads=2, num_kv_heads=1)
    kept = []
    monkeypatch.setattr("hasten.compress.prune.structured.cut_model", lambda model, target, selection: kept.append(selection))
    prune_model(model, target, sequences(101), options())
    scores = _find_importance("activation").measure(LayerSubset.all_of(model), sequences(101), 0, no_tick)
    for layer in range(3):
        group = int(scores.groups_LK[layer].argmax())
        assert kept[0].kv_heads_LK[layer].tolist() == [group]
        assert kept[0].heads_LH[layer].tolist() == [2 * group, 2 * group + 1]


@pytest.mark.parametrize(("layer_score", "kept"), [("influence", None), ("perplexity", None), ("influence", (0, 2))])
def test_layers_leave_first(tiny, monkeypatch, layer_score, kept):
    """Heads, neurons and channels are scored in the model without the removed layers."""
    if kept is not None:
        keep = lambda self, subset, *others: LayerSubset(subset.model, kept)  # noqa: E731
        monkeypatch.setattr(influence.BlockInfluence, "keep", keep)
    model = TrainableModel.load(tiny("llama-gqa"))
    ids = sequences(101)
    target = dataclasses.replace(Shape.of(model.spec), num_layers=2, intermediate_size=64)
    at_once = prune_model(model, target, ids, options(layer_score=layer_score))
    fewer = prune_model(model, dataclasses.replace(target, intermediate_size=96), ids, options(layer_score=layer_score))
    in_turn = prune_model(fewer, target, ids, options())
    for parameter, expected in zip(at_once.decoder.parameters(), in_turn.decoder.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_the_model_is_not_changed(tiny):
    model = TrainableModel.load(tiny("qwen2-tied"))
    before = {name: parameter.clone() for name, parameter in model.decoder.named_parameters()}
    target = Shape(num_layers=2, hidden_size=48, num_heads=2, num_kv_heads=1, intermediate_size=64)
    for method in ("activation", "weight", "taylor", "random"):
        pruned = prune_model(model, target, sequences(101), options(method))
        assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in pruned.decoder.parameters())
    for name, parameter in model.decoder.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and parameter.requires_grad


def test_sizes_out_of_range_are_listed(tiny):
    model = TrainableModel.load(tiny("llama-gqa"))
    shape = Shape.of(model.spec)
    cases = {
        "num_layers=0 (allowed: 1 to 3); hidden_size=65 (allowed: 1 to 64)": {"num_layers": 0, "hidden_size": 65},
        "num_heads=3 (allowed: 2, 4 with num_kv_heads=2)": {"num_heads": 3},
        "num_heads=4 (allowed: 1, 2 with num_kv_heads=1)": {"num_kv_heads": 1},
    }
    for message, changes in cases.items():
        with pytest.raises(InvalidOption) as error:
            prune_model(model, dataclasses.replace(shape, **changes), sequences(101), options())
        assert message in str(error.value)


def test_every_batch_ticks(tiny, monkeypatch):
    model = TrainableModel.load(tiny("llama-gqa"))
    ids = sequences(101)
    ticks = []
    target = Shape(num_layers=1, hidden_size=48, num_heads=2, num_kv_heads=1, intermediate_size=64)
    prune_model(model, target, ids, options(layer_score="perplexity"), lambda: ticks.append(1))
    assert len(ticks) == 3  # two rounds of layers, and the importances


def test_a_layer_of_zeros_leaves_scores_finite(tiny):
    """Checkpoints grown by layers that add nothing hold such matrices."""
    model = TrainableModel.load(tiny("llama-gqa"))
    with torch.no_grad():
        for parameter in model.decoder.layers[1].parameters():
            parameter.zero_()
    target = Shape(num_layers=3, hidden_size=48, num_heads=2, num_kv_heads=1, intermediate_size=64)
    for method in ("activation", "weight", "taylor"):
        pruned = prune_model(model, target, sequences(101), options(method))
        assert logits(pruned, sequences(101)).isfinite().all()


def test_a_model_that_overflows_is_refused(tiny):
    model = TrainableModel.load(tiny("llama-gqa"))
    with torch.no_grad():
        model.decoder.layers[0].mlp.up.format.weight.fill_(3e38)
    target = dataclasses.replace(Shape.of(model.spec), intermediate_size=64)
    for method in ("activation", "taylor"):
        with pytest.raises(CheckpointError, match=f"importances by {method} are not finite"):
            prune_model(model, target, sequences(101), options(method))
    fewer = dataclasses.replace(Shape.of(model.spec), num_layers=2)
    for score in ("influence", "perplexity"):
        with pytest.raises(CheckpointError, match=f"scores of layers by {score} are not finite"):
            prune_model(model, fewer, sequences(101), options(layer_score=score))


@pytest.mark.parametrize("name", ["llama-mqa-bias", "mistral-window", "qwen2-tied", "qwen3-mixed-window", "gpt2-untied-gelu"])
def test_the_engine_runs_what_was_pruned(tiny, tmp_path, name):
    """By the native kernels over the paged KV cache, with neurons off the kernels' multiples."""
    model = TrainableModel.load(tiny(name))
    parts = ("layers", "neurons", "groups", "width") if name != "llama-mqa-bias" else ("layers", "neurons", "width")
    prune_model(model, smaller(model, parts), sequences(model.spec.vocab_size), options()).write(tmp_path, dtype=torch.float32)
    ids = sequences(model.spec.vocab_size, seed=5, shape=(1, 40))
    with LLM(str(tmp_path), dtype="float32", block_size=4, kv_cache_memory="1MiB", max_model_len=96, threads=1) as llm:
        found = torch.cat(list(llm.engine.logits_scorer().logits(ids[0].tolist(), 16)))
    torch.testing.assert_close(found, transformers_logits(tmp_path, ids)[0], rtol=LIMIT, atol=LIMIT)
