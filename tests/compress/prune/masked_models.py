"""Models of transformers in which what is removed is zero, or absent: the reference for pruned models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.tiny_models import tiny_reference
from torch import nn


class NormOfSome(nn.Module):
    """A layer norm over some channels; the others are zero, and so is their output."""

    def __init__(self, norm, kept):
        super().__init__()
        factor = (len(norm.weight) / len(kept)) ** 0.5
        self.kept, self.eps, self.weight, self.bias = kept, norm.eps, norm.weight[kept] * factor, norm.bias[kept]

    def forward(self, x):
        out = torch.zeros_like(x)
        out[..., self.kept] = F.layer_norm(x[..., self.kept], (len(self.kept),), self.weight, self.bias, self.eps)
        return out


def parts(model):
    """Return the decoder, its layers, and the names in a layer of: norms, output projection, last feed-forward projection."""
    decoder = model.base_model
    if model.config.model_type == "gpt2":
        return decoder, "h", ("ln_1", "ln_2"), "attn.c_proj", "mlp.c_proj"
    return decoder, "layers", ("input_layernorm", "post_attention_layernorm"), "self_attn.o_proj", "mlp.down_proj"


def out_in(linear):
    """Return the weight [out, in] as a view: GPT-2's matrices are stored as [in, out]."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.weight.T


def removed(size, kept):
    return sorted(set(range(size)) - set(kept.tolist()))


@torch.no_grad()
def masked_reference(name, selection):
    """Return the tiny model ``name`` without what ``selection`` leaves out."""
    model = tiny_reference(name)
    decoder, layers_name, norms, out_name, down_name = parts(model)
    layers = getattr(decoder, layers_name)
    setattr(decoder, layers_name, nn.ModuleList(layers[index] for index in selection.layers))
    config = model.config
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in selection.layers]
    config.num_hidden_layers = len(selection.layers)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = removed(config.hidden_size, selection.channels_E)
    for position, layer in enumerate(getattr(decoder, layers_name)):
        out, down = layer.get_submodule(out_name), layer.get_submodule(down_name)
        for head in removed(config.num_attention_heads, selection.heads_LH[position]):
            out_in(out)[:, head * head_dim : (head + 1) * head_dim] = 0
        out_in(down)[:, removed(out_in(down).shape[1], selection.neurons_LF[position])] = 0
        for linear in (out, down):
            out_in(linear)[channels] = 0
            if linear.bias is not None:
                linear.bias[channels] = 0
    if channels:
        _remove_channels(model, decoder, layers_name, norms, selection.channels_E, channels)
    return model


def _remove_channels(model, decoder, layers_name, norms, kept, channels):
    is_gpt2 = model.config.model_type == "gpt2"
    tables = [decoder.wte, decoder.wpe] if is_gpt2 else [decoder.embed_tokens]
    tied = model.get_output_embeddings().weight is tables[0].weight
    for table in tables:
        table.weight[:, channels] = 0
    assert tied == (model.get_output_embeddings().weight is tables[0].weight)
    places = [(layer, norm) for layer in getattr(decoder, layers_name) for norm in norms]
    for module, norm in [*places, (decoder, "ln_f" if is_gpt2 else "norm")]:
        if is_gpt2:
            setattr(module, norm, NormOfSome(getattr(module, norm), kept))
        else:  # the mean square is over the zeros, too; epsilon is relative to it
            getattr(module, norm).variance_epsilon *= len(kept) / (len(kept) + len(channels))
