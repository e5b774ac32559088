"""Scores equal formulas computed with transformers: hooks, weights and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.compress.prune.masked_models import out_in, parts
from tests.tiny_models import tiny_reference

from hasten.compress.prune.importance import activation, random, taylor, weight
from hasten.compress.prune.layer_subset import LayerSubset, no_tick
from hasten.training.trainable_model import TrainableModel

NAMES = ("llama-gqa", "llama-mqa-bias", "llama-mha-tied", "qwen3-tied-bias", "gpt2", "gpt2-untied-gelu")
FIELDS = ("groups_LK", "heads_LH", "neurons_LF", "channels_E")


class Reference:
    """A tiny model of transformers and what its matrices read."""

    def __init__(self, name):
        self.model = tiny_reference(name)
        config = self.model.config
        self.heads = config.num_attention_heads
        self.groups = getattr(config, "num_key_value_heads", self.heads)
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.decoder, layers, norms, out, down = parts(self.model)
        self.layers = list(getattr(self.decoder, layers))
        self.outs = [layer.get_submodule(out) for layer in self.layers]
        self.downs = [layer.get_submodule(down) for layer in self.layers]
        self.norms = [layer.get_submodule(norm) for layer in self.layers for norm in norms]
        self.norms.append(self.decoder.ln_f if self.is_gpt2 else self.decoder.norm)
        self.reads = {}
        for module in (*self.outs, *self.downs):
            module.register_forward_pre_hook(lambda module, inputs: self.reads.update({module: inputs[0]}))
        for norm in self.norms:
            norm.register_forward_hook(lambda module, inputs, output: self.reads.update({module: output}))

    @property
    def is_gpt2(self):
        return self.model.config.model_type == "gpt2"

    def q_k_v(self, layer):
        if self.is_gpt2:
            return layer.attn.c_attn.weight.T.chunk(3)
        return [getattr(layer.self_attn, f"{kind}_proj").weight for kind in "qkv"]

    def gate_up(self, layer):
        return [layer.mlp.c_fc.weight.T] if self.is_gpt2 else [layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]

    def readers(self):
        """The weights that read each norm, the rows of all matrices together."""
        found = []
        for layer in self.layers:
            found += [torch.cat(list(self.q_k_v(layer))), torch.cat(self.gate_up(layer))]
        return [*found, self.model.get_output_embeddings().weight]

    def columns(self, head):
        return slice(head * self.head_dim, (head + 1) * self.head_dim)

    def members(self, group):
        size = self.heads // self.groups
        return range(group * size, (group + 1) * size)


def ids_of(reference):
    return torch.randint(reference.model.config.vocab_size, (5, 23), generator=torch.Generator().manual_seed(2))


def measured(method, tiny, name, ids, batch_tokens=None):
    subset = LayerSubset.all_of(TrainableModel.load(tiny(name)))
    scores = method.measure(subset, ids, 0, no_tick)
    assert all(parameter.grad is None for parameter in subset.model.decoder.parameters())
    return {field: getattr(scores, field).double() for field in FIELDS}


def assert_close(scores, expected):
    for field in FIELDS:
        torch.testing.assert_close(scores[field], torch.as_tensor(expected[field]).double(), rtol=2e-4, atol=1e-7)


def norm(x):
    return float(x.double().norm())


@pytest.mark.parametrize("name", NAMES)
def test_activation_is_the_norm_of_the_removed_output(tiny, monkeypatch, name):
    monkeypatch.setattr(activation, "batches", lambda ids: ids.split(2))  # the result does not depend on batches
    reference = Reference(name)
    ids = ids_of(reference)
    reference.model(ids, use_cache=False)
    reads = {module: x.flatten(0, 1) for module, x in reference.reads.items()}
    expected = {field: [] for field in FIELDS}
    for out, down in zip(reference.outs, reference.downs, strict=True):
        of_head = [reads[out][:, reference.columns(h)] @ out_in(out)[:, reference.columns(h)].T for h in range(reference.heads)]
        expected["heads_LH"].append([norm(x) for x in of_head])
        expected["groups_LK"].append([norm(sum(of_head[h] for h in reference.members(group))) for group in range(reference.groups)])
        expected["neurons_LF"].append(
            [norm(torch.outer(reads[down][:, j], out_in(down)[:, j])) for j in range(reads[down].shape[1])]
        )
    channels = 0
    for module, matrix in zip(reference.norms, reference.readers(), strict=True):
        squares = torch.tensor([norm(torch.outer(x, w)) ** 2 for x, w in zip(reads[module].T, matrix.T, strict=True)])
        channels = channels + squares / squares.sum()
    assert_close(measured(activation.METHOD, tiny, name, ids), {**expected, "channels_E": channels})


@pytest.mark.parametrize("name", NAMES)
def test_weight_is_the_share_of_squared_weights(tiny, name):
    reference = Reference(name)
    share = lambda squares: squares / squares.sum()  # noqa: E731
    by_head = lambda squares: squares.view(-1, reference.head_dim).sum(1)  # noqa: E731
    expected = {field: [] for field in FIELDS}
    tables = [reference.decoder.wte, reference.decoder.wpe] if reference.is_gpt2 else [reference.decoder.embed_tokens]
    channels = sum(share(table.weight.square().sum(0)) for table in tables)
    for index, layer in enumerate(reference.layers):
        out, down = out_in(reference.outs[index]), out_in(reference.downs[index])
        q, k, v = ((matrix * reference.norms[2 * index].weight).square().sum(1) for matrix in reference.q_k_v(layer))
        heads = share(by_head(q)) + share(by_head(out.square().sum(0)))
        grouped = torch.tensor([sum(heads[h] for h in reference.members(group)) for group in range(reference.groups)])
        expected["heads_LH"].append(heads)
        expected["groups_LK"].append(grouped + share(by_head(k)) + share(by_head(v)))
        ups = [(matrix * reference.norms[2 * index + 1].weight).square().sum(1) for matrix in reference.gate_up(layer)]
        expected["neurons_LF"].append(sum(map(share, ups)) + share(down.square().sum(0)))
        channels = channels + share(out.square().sum(1)) + share(down.square().sum(1))
    for module, matrix in zip(reference.norms, reference.readers(), strict=True):
        channels = channels + share((matrix * module.weight).square().sum(0))
    stacked = {field: torch.stack(rows) for field, rows in expected.items() if rows}
    assert_close(measured(weight.METHOD, tiny, name, ids_of(reference)), {**stacked, "channels_E": channels})


@pytest.mark.parametrize("name", NAMES)
def test_taylor_is_the_product_of_weights_and_gradients(tiny, monkeypatch, name):
    monkeypatch.setattr(taylor, "batches", lambda ids, tokens: ids.split(2))
    reference = Reference(name)
    ids = ids_of(reference)
    reference.model.requires_grad_(True)
    totals = dict.fromkeys(FIELDS, 0)
    for ids_S in ids:
        reference.model.zero_grad()
        logits = reference.model(ids_S[None], use_cache=False).logits[0]
        F.cross_entropy(logits[:-1], ids_S[1:], reduction="sum").backward()

        def products(linear):
            gradient = linear.weight.grad if isinstance(linear, torch.nn.Linear) else linear.weight.grad.T
            return (out_in(linear) * gradient).sum(0)

        outs = torch.stack([products(out).view(reference.heads, -1).sum(1) for out in reference.outs])
        totals["heads_LH"] += outs.abs()
        totals["groups_LK"] += outs.view(len(outs), reference.groups, -1).sum(-1).abs()
        totals["neurons_LF"] += torch.stack([products(down) for down in reference.downs]).abs()
        channels = sum(p * p.grad for module in reference.norms for p in module.parameters())
        totals["channels_E"] += channels.abs()
    expected = {field: total.detach() for field, total in totals.items()}
    assert_close(measured(taylor.METHOD, tiny, name, ids), expected)


def test_taylor_predicts_a_small_change_of_the_loss(tiny):
    """Scaling a group by 1 - e changes the loss of one sequence by e times its score, to first order."""
    model = TrainableModel.load(tiny("llama-gqa"))
    ids = torch.arange(1, 30)[None]
    scores = taylor.METHOD.measure(LayerSubset.all_of(model), ids, 0, no_tick)
    layer, step = model.decoder.layers[1], 1e-3

    @torch.no_grad()
    def loss():
        logits = model.decoder.head(model.hidden_states(ids).last_TE)
        return float(F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))

    def change(weight, columns):
        losses = []
        for factor in (1 - step, 1 + step):
            with torch.no_grad():
                before = weight.clone()
                weight[:, columns] *= factor
                losses.append(loss())
                weight.copy_(before)
        return abs(losses[0] - losses[1]) / (2 * step)

    for head in range(4):
        found = change(layer.attention.out.format.weight, slice(16 * head, 16 * head + 16))
        assert found == pytest.approx(float(scores.heads_LH[1, head]), rel=0.05, abs=0.02)
    strongest = int(scores.neurons_LF[1].argmax())
    found = change(layer.mlp.down.format.weight, slice(strongest, strongest + 1))
    assert found == pytest.approx(float(scores.neurons_LF[1, strongest]), rel=0.05, abs=0.02)


def test_random_scores_follow_the_seed(tiny):
    subset = LayerSubset.all_of(TrainableModel.load(tiny("llama-gqa")))
    ids = torch.zeros(1, 4, dtype=torch.int64)
    first, again, other = (random.METHOD.measure(subset, ids, seed, no_tick) for seed in (0, 0, 1))
    for field, shape in zip(FIELDS, ((3, 2), (3, 4), (3, 96), (64,)), strict=True):
        assert getattr(first, field).shape == shape
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert not torch.equal(getattr(first, field), getattr(other, field))


@pytest.mark.parametrize("method", [activation.METHOD, taylor.METHOD])
def test_scores_are_those_of_the_layers_that_run(tiny, method):
    model = TrainableModel.load(tiny("llama-gqa"))
    ids = torch.arange(40).view(2, 20)
    scores = method.measure(LayerSubset(model, (0, 2)), ids, 0, no_tick)
    assert scores.groups_LK.shape == (2, 2)
    whole = method.measure(LayerSubset.all_of(model), ids, 0, no_tick)
    assert not torch.allclose(scores.heads_LH[1], whole.heads_LH[2])  # its input lacks layer 1
    if method is activation.METHOD:
        assert torch.allclose(scores.heads_LH[0], whole.heads_LH[0])


def test_a_tick_may_stop_the_measurement(tiny):
    class StoppedError(Exception):
        pass

    def stop():
        raise StoppedError

    subset = LayerSubset.all_of(TrainableModel.load(tiny("llama-gqa")))
    for method in (activation.METHOD, weight.METHOD, taylor.METHOD):
        with pytest.raises(StoppedError):
            method.measure(subset, torch.arange(40).view(2, 20), 0, stop)
    modules = list(subset.model.decoder.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
