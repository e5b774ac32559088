"""A sliced model computes what the full model computes with zeros in place of what was removed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.compress.prune.masked_models import masked_reference
from tests.tiny_models import TINY

from hasten.compress.prune.selection import Selection
from hasten.compress.prune.shape import Shape
from hasten.compress.prune.structured import cut_model
from hasten.core.errors import InvalidOption
from hasten.training.trainable_model import TrainableModel

LIMIT = 2e-4
PARTS = (("layers",), ("neurons",), ("groups",), ("heads",), ("width",), ("layers", "neurons", "groups", "heads", "width"))


def random_selection(spec, parts, generator):
    """Return a selection of about two thirds of each part, and its shape."""
    shape = Shape.of(spec)

    def draw(size, count):
        return torch.randperm(size, generator=generator)[:count].sort().values

    num_layers = shape.num_layers - ("layers" in parts)
    layers = tuple(draw(shape.num_layers, num_layers).tolist())
    groups = max(1, shape.num_kv_heads - ("groups" in parts))
    group_size = shape.num_heads // shape.num_kv_heads
    per_group = max(1, group_size - ("heads" in parts))
    neurons = shape.intermediate_size - (31 if "neurons" in parts else 0)
    width = shape.hidden_size
    if "width" in parts:
        width = groups * per_group * spec.layers[0].attention.head_dim if spec.model_type == "gpt2" else 48
    kv_heads = torch.stack([draw(shape.num_kv_heads, groups) for _ in layers])
    heads = [[int(group) * group_size + draw(group_size, per_group) for group in row] for row in kv_heads]
    selection = Selection(
        layers,
        kv_heads,
        torch.stack([torch.cat(row) for row in heads]),
        torch.stack([draw(shape.intermediate_size, neurons) for _ in layers]),
        draw(shape.hidden_size, width),
    )
    target = Shape(
        num_layers=num_layers,
        hidden_size=width,
        num_heads=groups * per_group,
        num_kv_heads=groups,
        intermediate_size=neurons,
    )
    return selection, target


@torch.no_grad()
def logits(model, ids):
    return model.decoder.head(model.hidden_states(ids).last_TE).view(*ids.shape, -1)


@pytest.mark.parametrize("name", TINY)
def test_slices_equal_masked_models(tiny, name):
    model = TrainableModel.load(tiny(name))
    generator = torch.Generator().manual_seed(len(name))
    ids = torch.randint(model.spec.vocab_size, (2, 19), generator=generator)
    num_cut = 0
    for parts in PARTS:
        selection, target = random_selection(model.spec, parts, generator)
        try:
            pruned = cut_model(model, target, selection)
        except InvalidOption:
            continue
        num_cut += 1
        with torch.no_grad():
            expected = masked_reference(name, selection)(ids, use_cache=False).logits
        assert (logits(pruned, ids) - expected).abs().max() < LIMIT * expected.abs().max(), parts
    assert num_cut >= 4


def test_wrong_rows_differ(tiny):
    """Negative control: the masked model of another selection has other logits."""
    model = TrainableModel.load(tiny("llama-gqa"))
    ids = torch.arange(20)[None]
    for parts in PARTS:
        selection, target = random_selection(model.spec, parts, torch.Generator().manual_seed(1))
        other = random_selection(model.spec, parts, torch.Generator().manual_seed(3))[0]
        expected = masked_reference("llama-gqa", other)(ids, use_cache=False).logits
        assert (logits(cut_model(model, target, selection), ids) - expected).abs().max() > 1e-2, parts


def test_tied_embeddings_stay_tied(tiny):
    for name, tied in (("llama-mha-tied", True), ("llama-gqa", False), ("gpt2", True)):
        model = TrainableModel.load(tiny(name))
        shape = Shape.of(model.spec)
        smaller = dataclasses.replace(shape, intermediate_size=32)
        selection = Selection.everything(smaller, (0, 1, 2))
        pruned = cut_model(model, smaller, selection)
        assert pruned.spec.tie_word_embeddings == tied
        assert (pruned.decoder.lm_head.format is pruned.decoder.embedding.format) == tied
