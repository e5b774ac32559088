"""Configurations of pruned models: sizes, windows of the layers that stay, and families that others' readers accept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hasten.compress.prune.pruned_config import loading_notes, pruned_config
from hasten.compress.prune.selection import Selection
from hasten.compress.prune.shape import Shape
from hasten.compress.prune.structured import cut_model
from hasten.core.errors import InvalidOption
from hasten.models.family import find_family
from hasten.training.trainable_model import TrainableModel


def without_layers(model, layers):
    shape = Shape.of(model.spec)
    target = dataclasses.replace(shape, num_layers=len(layers))
    return cut_model(model, target, Selection.everything(shape, layers))


@pytest.mark.parametrize("name", ["qwen2-mixed-window", "qwen3-mixed-window"])
@pytest.mark.parametrize("layers", [(0, 1), (1, 2, 3), (1, 3), (0, 2)])
def test_windows_follow_their_layers(tiny, tmp_path, name, layers):
    model = TrainableModel.load(tiny(name))
    pruned = without_layers(model, layers)
    assert pruned.spec.layers == tuple(model.spec.layers[index] for index in layers)
    kinds = [model.config["layer_types"][index] for index in layers]
    assert pruned.config["layer_types"] == kinds
    pruned.write(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).layer_types == kinds


@pytest.mark.parametrize(("name", "said"), [("qwen2-tied", True), ("qwen3-gqa", False), ("llama-gqa", False)])
def test_heads_that_vllm_cannot_infer_are_said(tiny, name, said):
    """vLLM's Qwen2 takes hidden_size // num_attention_heads for the head size, and does not read head_dim."""
    model = TrainableModel.load(tiny(name))
    head_dim, shape = model.spec.layers[0].attention.head_dim, Shape.of(model.spec)
    for num_heads, hidden_size in ((4, 64), (2, 64), (4, 48), (2, 2 * head_dim)):
        target = dataclasses.replace(shape, num_heads=num_heads, num_kv_heads=2, hidden_size=hidden_size)
        config, spec = pruned_config(model.config, target.apply(model.spec))
        infers = config["hidden_size"] // config["num_attention_heads"] == config["head_dim"]
        assert bool(loading_notes(spec)) == (said and not infers), target


def test_old_configurations_without_layer_types():
    """Then the windows begin at a layer; transformers derives its layer types from it."""
    config = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 6,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 3,
    }
    spec = find_family(config).spec(config)
    for layers in ((0, 3, 4), (0, 1, 2), (4, 5), (1, 5)):
        smaller = dataclasses.replace(spec, layers=tuple(spec.layers[index] for index in layers))
        sized, described = pruned_config(config, smaller)
        assert described == smaller
        windowed = [index >= 3 for index in layers]
        expected = sized | {"layer_types": None}  # as a reader sees it that knows no layer_types
        if any(windowed):
            assert [layer.attention.window is not None for layer in find_family(expected).spec(expected).layers] == windowed
        assert [kind == "sliding_attention" for kind in AutoConfig.for_model(**sized).layer_types] == windowed


def test_a_llama_that_transformers_refuses_is_written_as_mistral(tiny, tmp_path):
    model = TrainableModel.load(tiny("llama-mha-tied"))
    shape = Shape.of(model.spec)
    target = dataclasses.replace(shape, num_heads=3, num_kv_heads=3)  # 64 channels
    pruned = cut_model(model, target, Selection.everything(target, (0, 1, 2)))
    assert (pruned.config["model_type"], pruned.config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert dataclasses.replace(pruned.spec, model_type="llama") == target.apply(model.spec)
    pruned.write(tmp_path)
    ids = torch.arange(60)[None]
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert reference.config.sliding_window is None
    with torch.no_grad():
        found = pruned.decoder.head(pruned.hidden_states(ids).last_TE)
        assert (reference(ids).logits[0] - found).abs().max() < 1e-4


def test_defaults_of_a_llama_survive_as_mistral():
    """Keys that the configuration leaves out have other defaults in Mistral."""
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 32, "hidden_size": 4096}
    spec = find_family(config).spec(config)
    target = dataclasses.replace(Shape.of(spec), num_heads=24, num_kv_heads=24)
    sized, described = pruned_config(config, target.apply(spec))
    assert sized["model_type"] == "mistral"
    assert dataclasses.replace(described, model_type="llama") == target.apply(spec)
    assert described.max_positions == 2048 and described.vocab_size == 32_000


def test_sizes_that_the_family_cannot_express(tiny):
    biased = TrainableModel.load(tiny("llama-mqa-bias"))
    shape = Shape.of(biased.spec)
    with pytest.raises(
        InvalidOption, match="got hidden size 64, 3 heads, 1 key/value heads; allowed: a hidden size that is a multiple"
    ):
        pruned_config(biased.config, dataclasses.replace(shape, num_heads=3).apply(biased.spec))
    gpt2 = TrainableModel.load(tiny("gpt2"))
    shape = Shape.of(gpt2.spec)
    with pytest.raises(InvalidOption, match="allowed: a hidden size of 16 per head, so heads and width are pruned together"):
        pruned_config(gpt2.config, dataclasses.replace(shape, hidden_size=48).apply(gpt2.spec))
    sized, described = pruned_config(
        gpt2.config, dataclasses.replace(shape, hidden_size=48, num_heads=3, num_kv_heads=3).apply(gpt2.spec)
    )
    assert (sized["n_embd"], sized["n_head"], sized["n_inner"]) == (48, 3, 256)
    assert described.hidden_size == 48


def test_scales_of_attention_by_layer_move_into_the_queries(tiny):
    """Layer 2 becomes layer 1, whose scale the configuration divides by 2 and no longer by 3."""
    model = TrainableModel.load(tiny("gpt2-untied-gelu"))
    pruned = without_layers(model, (0, 2))
    before, after = model.decoder.layers[2].attention, pruned.decoder.layers[1].attention
    assert after.spec.scale == pytest.approx(before.spec.scale * 3 / 2)
    torch.testing.assert_close(after.qkv.format.weight[:64], before.qkv.format.weight[:64] * 2 / 3)
    torch.testing.assert_close(after.qkv.bias[:64], before.qkv.bias[:64] * 2 / 3)
    assert torch.equal(after.qkv.format.weight[64:], before.qkv.format.weight[64:])
