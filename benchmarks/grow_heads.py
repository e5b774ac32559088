"""DraftHeads for a grown model: what ``grow.py`` does to a model, done to its Medusa heads, its EAGLE-3 head or its exits.

``python benchmarks/grow_heads.py demo-eagle grown/eagle --model demo --grown grown/demo`` reads heads of ``--model`` and writes
heads of ``--grown``: the same guesses, at the cost of heads of that size. DraftHeads and exits that guess from a part of the vocabulary
get the 32,768 tokens that EAGLE-3 heads are usually given; the new ones can never be chosen.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from grow import CONSTANT, DRAFT_VOCABULARY, FORBIDDEN, LOUDNESS, more_tokens, padded, sample
from hasten.checkpoints.formats.eagle3 import open_eagle3, write_eagle3
from hasten.checkpoints.hub import resolve
from hasten.layers.attention import DenseContext
from hasten.models.eagle import eagle_tensors, load_eagle
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return values


def grow_medusa(source: Path, target: Path, grown: dict[str, Any]) -> None:
    """Zeros beside every row; a head adds nothing where its input has the constant, and passes it on."""
    width = grown["hidden_size"]
    tensors: dict[str, Tensor] = {}
    words = dict.fromkeys(("vocab_size", "truncated_vocab_size"), grown["vocab_size"])
    for name, tensor in load_file(source / "model.safetensors").items():
        if name == "token_map":
            tensors[name] = more_tokens(tensor, grown["vocab_size"])
            words["truncated_vocab_size"] = DRAFT_VOCABULARY
            continue
        if not name.startswith("blocks."):
            raise ValueError(f"{name}: only heads that share the model's vocabulary projection can be grown")
        tensors[name] = padded(tensor.reshape(len(tensor), -1), width, width if tensor.dim() == 2 else 1)
        tensors[name] = tensors[name] if tensor.dim() == 2 else tensors[name][:, 0].contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = config_of(source) | words | {"hidden_size": width, "dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def loudness(source: Path, model: Path) -> tuple[float, float]:
    """The median root mean square of what the head's first and its last norm of the hidden state read, over held-out text."""
    decoder = load_decoder(model, dtype="float32", ops=TorchOps()).decoder
    head = load_eagle(source, decoder).head
    (ids,) = sample(model, 256)
    context = DenseContext(decoder.ops, decoder.rotary, [len(ids)])
    states: dict[int, Tensor] = {}
    hooks = {layer: lambda x, i=layer: states.update({i: x}) for layer in head.spec.aux_layer_indices}
    decoder.run(decoder.embed(ids), context.positions_T, context, hooks=hooks)
    fused = head.fuse(torch.cat([states[layer][:-1] for layer in head.spec.aux_layer_indices], dim=1))
    context = DenseContext(head.ops, head.rotary, [len(ids) - 1])
    read = (fused, head.run(fused, ids[1:], context.positions_T, context))
    first, last = (float(hidden.pow(2).mean(-1).sqrt().median()) for hidden in read)
    return first, last


def grow_eagle(source: Path, target: Path, model: Path, grown: dict[str, Any]) -> None:
    old, decoder = config_of(model), load_decoder(model, dtype="float32", ops=TorchOps()).decoder
    head, config = load_eagle(source, decoder).head, open_eagle3(source)[1]
    hidden, width = old["hidden_size"], grown["hidden_size"]
    factor, inner = width // hidden, config.layer["intermediate_size"] * (width // hidden)
    query = grown["num_attention_heads"] * grown["head_dim"]
    key = grown["num_key_value_heads"] * grown["head_dim"]
    rows = {
        "q_proj": query,
        "k_proj": key,
        "v_proj": key,
        "o_proj": width,
        "gate_proj": inner,
        "up_proj": inner,
        "down_proj": width,
    }
    columns = {"o_proj": query, "gate_proj": width, "up_proj": width, "down_proj": inner}
    tensors: dict[str, Tensor] = {}
    for name, tensor in eagle_tensors(head).items():
        part = name.split(".")[-2]
        if tensor.dim() == 1:  # norms: the mean of squares is over more inputs, most of them zero
            tensors[name] = padded(tensor[:, None] / math.sqrt(factor), width, 1)[:, 0].contiguous()
        elif name == "fc.weight" or part in ("q_proj", "k_proj", "v_proj"):  # several vectors side by side
            blocks = tensor.split(hidden, dim=1)
            tensors[name] = torch.cat([padded(block, rows.get(part, width), width) for block in blocks], dim=1)
        elif name == "lm_head.weight":
            tensors[name] = padded(tensor, DRAFT_VOCABULARY, width)
            tensors[name][len(tensor) :, hidden] = FORBIDDEN / LOUDNESS
        else:
            tensors[name] = padded(tensor, rows[part], columns[part])
    tensors["fc.weight"][hidden, hidden] = 1.0  # the constant goes on, for the tokens that can never be chosen
    first, last = loudness(source, model)
    constant = CONSTANT
    if config.norm_before_residual:  # then it goes on behind the norm, which divides it by what it reads
        tensors["layers.0.hidden_norm.weight"][hidden] = 1.0
        constant *= math.sqrt(factor) / first
    tensors["norm.weight"][hidden] = LOUDNESS * last / (constant * math.sqrt(factor))
    target_ids = more_tokens(head.target_ids, grown["vocab_size"])
    order = torch.tensor([*torch.searchsorted(target_ids, head.target_ids).tolist()])
    free = torch.ones(DRAFT_VOCABULARY, dtype=torch.bool).index_fill_(0, order, False).nonzero().flatten()
    projection = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = torch.empty_like(projection).index_copy_(0, torch.cat((order, free)), projection)
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps")
    layer = dict(config.layer) | {name: grown[name] for name in names} | {"intermediate_size": inner}
    states = tuple((count - 1) * grown["num_hidden_layers"] // old["num_hidden_layers"] + 1 for count in head.spec.aux_layers)
    changed = {"layer": layer, "draft_vocab_size": DRAFT_VOCABULARY, "aux_layers": states, "target_size": width}
    write_eagle3(target, dataclasses.replace(config, **changed), tensors, target_ids, grown["vocab_size"])


def grow_exits(source: Path, target: Path, old: dict[str, Any], grown: dict[str, Any]) -> None:
    """Zeros beside every row; an exit adds nothing to the constant. New tokens leave nowhere, and no text is hashed by new inputs.

    An exit after e layers is one after as many of those that do something.
    """
    factor, width, layers = grown["hidden_size"] // old["hidden_size"], grown["hidden_size"], old["num_hidden_layers"]
    places = [layer * grown["num_hidden_layers"] // layers for layer in range(layers)] + [grown["num_hidden_layers"] - 1]
    depth = {count: places[count - 1] + 1 for count in range(1, layers)} | {layers: grown["num_hidden_layers"]}
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name == "token_layers":
            new = torch.full((grown["vocab_size"] - len(tensor),), grown["num_hidden_layers"], dtype=tensor.dtype)
            tensors[name] = torch.cat([moved(tensor, depth), new])
        elif name == "draft_ids":
            tensors[name] = more_tokens(tensor, grown["vocab_size"])
        elif name == "text_layers":
            tensors[name] = moved(tensor, depth)
        elif name == "text_planes":
            tensors[name] = torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])).contiguous()
        else:
            _, count, part, kind = name.split(".")
            new_name = f"exits.{depth[int(count)]}.{part}.{kind}"
            if kind == "weight" and part == "translate":
                tensors[new_name] = padded(tensor, width, width)
            elif len(tensor) == 1:
                tensors[new_name] = tensor.clone()
            else:  # the classifier reads a direction: among more inputs, most of them zero, each of the others is larger
                share = 1.0 if part == "translate" else factor**-0.5
                tensors[new_name] = torch.nn.functional.pad(tensor * share, (0, width - len(tensor))).contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    names = ("num_hidden_layers", "hidden_size", "vocab_size")
    config = config_of(source) | {name: grown[name] for name in names} | {"dtype": "bfloat16"}
    config["exit_layers"] = [depth[count] for count in config["exit_layers"]]
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def moved(layers: Tensor, depth: dict[int, int]) -> Tensor:
    return torch.tensor([depth[count] for count in layers.tolist()], dtype=layers.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="heads: demo-eagle or a folder")
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="demo", help="whose heads they are")
    parser.add_argument("--grown", type=Path, required=True, help="the same model, grown")
    options = parser.parse_args()
    source, model = (resolve(name, None, quiet=True) for name in (options.source, options.model))
    options.target.mkdir(parents=True, exist_ok=True)
    if "speculators_model_type" in config_of(source):
        grow_eagle(source, options.target, model, config_of(options.grown))
    elif config_of(source).get("model_type") == "hasten_exits":
        grow_exits(source, options.target, config_of(model), config_of(options.grown))
    else:
        grow_medusa(source, options.target, config_of(options.grown))
    print(f"{options.target}: heads of {options.grown}")


if __name__ == "__main__":
    main()
