"""Widen the Medusa heads, the EAGLE-3 head or the exits of a model that ``grow.py`` widened.

``python benchmarks/grow_heads.py demo-eagle grown/eagle --model demo --grown grown/demo`` reads heads of ``--model`` and writes
heads of ``--grown``. They draft the same tokens at the cost of heads of that size. A truncated draft vocabulary grows to 32,768
tokens, about the usual size of an EAGLE-3 head's. The new tokens are never chosen.
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

from grow import (
    CONSTANT,
    DRAFT_VOCAB_SIZE,
    NEW_TOKEN_LOGIT,
    NORMED_CONSTANT,
    grown_draft_ids,
    heldout_ids,
    layer_indices,
    zero_padded,
)
from hasten.checkpoints.formats.eagle3 import open_eagle3, write_eagle3
from hasten.checkpoints.hub import resolve
from hasten.layers.attention import DenseContext
from hasten.models.eagle import eagle_tensors, load_eagle
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps


def read_config(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return values


def grow_medusa(source: Path, target: Path, grown: dict[str, Any]) -> None:
    """Pad every row with zeros. A head adds nothing to the constant of its input."""
    width = grown["hidden_size"]
    tensors: dict[str, Tensor] = {}
    vocab_sizes = dict.fromkeys(("vocab_size", "truncated_vocab_size"), grown["vocab_size"])
    for name, tensor in load_file(source / "model.safetensors").items():
        if name == "token_map":
            tensors[name] = grown_draft_ids(tensor, grown["vocab_size"])
            vocab_sizes["truncated_vocab_size"] = DRAFT_VOCAB_SIZE
            continue
        if not name.startswith("blocks."):
            raise ValueError(f"{name}: only heads that share the model's lm_head can be grown")
        if tensor.dim() == 2:
            tensors[name] = zero_padded(tensor, width, width)
        else:
            tensors[name] = zero_padded(tensor[:, None], width, 1)[:, 0].contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = read_config(source) | vocab_sizes | {"hidden_size": width, "dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def norm_input_rms(source: Path, model: Path) -> tuple[float, float]:
    """Return the median root mean square of the inputs of the head's first and last norm."""
    decoder = load_decoder(model, dtype="float32", ops=TorchOps()).decoder
    head = load_eagle(source, decoder).head
    (ids,) = heldout_ids(model, 256)
    context = DenseContext(decoder.ops, decoder.rotary, [len(ids)])
    aux: dict[int, Tensor] = {}
    hooks = {layer: lambda x, i=layer: aux.update({i: x}) for layer in head.spec.aux_layer_indices}
    decoder.run(decoder.embed(ids), context.positions_T, context, hooks=hooks)
    fused = head.fuse(torch.cat([aux[layer][:-1] for layer in head.spec.aux_layer_indices], dim=1))
    context = DenseContext(head.ops, head.rotary, [len(ids) - 1])
    inputs = (fused, head.run(fused, ids[1:], context.positions_T, context))
    first, last = (float(hidden.pow(2).mean(-1).sqrt().median()) for hidden in inputs)
    return first, last


def grow_eagle(source: Path, target: Path, model: Path, grown: dict[str, Any]) -> None:
    old, decoder = read_config(model), load_decoder(model, dtype="float32", ops=TorchOps()).decoder
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
            tensors[name] = zero_padded(tensor[:, None] / math.sqrt(factor), width, 1)[:, 0].contiguous()
        elif name == "fc.weight" or part in ("q_proj", "k_proj", "v_proj"):  # several vectors side by side
            blocks = tensor.split(hidden, dim=1)
            tensors[name] = torch.cat([zero_padded(block, rows.get(part, width), width) for block in blocks], dim=1)
        elif name == "lm_head.weight":
            tensors[name] = zero_padded(tensor, DRAFT_VOCAB_SIZE, width)
            tensors[name][len(tensor) :, hidden] = NEW_TOKEN_LOGIT / NORMED_CONSTANT
        else:
            tensors[name] = zero_padded(tensor, rows[part], columns[part])
    tensors["fc.weight"][hidden, hidden] = 1.0  # keeps the constant, which the new tokens' logits need
    first, last = norm_input_rms(source, model)
    constant = CONSTANT
    if config.norm_before_residual:  # the residual is the norm's output
        tensors["layers.0.hidden_norm.weight"][hidden] = 1.0
        constant *= math.sqrt(factor) / first
    tensors["norm.weight"][hidden] = NORMED_CONSTANT * last / (constant * math.sqrt(factor))
    target_ids = grown_draft_ids(head.target_ids, grown["vocab_size"])
    old_rows = torch.searchsorted(target_ids, head.target_ids)
    new_rows = torch.ones(DRAFT_VOCAB_SIZE, dtype=torch.bool).index_fill_(0, old_rows, False).nonzero().flatten()
    lm_head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = torch.empty_like(lm_head).index_copy_(0, torch.cat((old_rows, new_rows)), lm_head)
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps")
    layer = dict(config.layer) | {name: grown[name] for name in names} | {"intermediate_size": inner}
    aux_layers = tuple((layer - 1) * grown["num_hidden_layers"] // old["num_hidden_layers"] + 1 for layer in head.spec.aux_layers)
    changed = {"layer": layer, "draft_vocab_size": DRAFT_VOCAB_SIZE, "aux_layers": aux_layers, "target_size": width}
    write_eagle3(target, dataclasses.replace(config, **changed), tensors, target_ids, grown["vocab_size"])


def grow_exits(source: Path, target: Path, old: dict[str, Any], grown: dict[str, Any]) -> None:
    """Pad every row with zeros. New tokens have no early exit, and prompt hashes do not read new inputs.

    An exit after e layers moves to where e original layers are computed.
    """
    factor, width, num_layers = grown["hidden_size"] // old["hidden_size"], grown["hidden_size"], old["num_hidden_layers"]
    indices = layer_indices(num_layers, grown["num_hidden_layers"])
    new_layers = {layer: indices[layer - 1] + 1 for layer in range(1, num_layers)} | {num_layers: grown["num_hidden_layers"]}
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name == "token_layers":
            new = torch.full((grown["vocab_size"] - len(tensor),), grown["num_hidden_layers"], dtype=tensor.dtype)
            tensors[name] = torch.cat([mapped(tensor, new_layers), new])
        elif name == "draft_ids":
            tensors[name] = grown_draft_ids(tensor, grown["vocab_size"])
        elif name == "text_layers":
            tensors[name] = mapped(tensor, new_layers)
        elif name == "text_planes":
            tensors[name] = torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])).contiguous()
        else:
            _, layer, part, kind = name.split(".")
            new_name = f"exits.{new_layers[int(layer)]}.{part}.{kind}"
            if kind == "weight" and part == "translate":
                tensors[new_name] = zero_padded(tensor, width, width)
            elif len(tensor) == 1:
                tensors[new_name] = tensor.clone()
            else:  # the classifier normalises its input, which is larger among more inputs that are mostly zero
                scale = 1.0 if part == "translate" else factor**-0.5
                tensors[new_name] = torch.nn.functional.pad(tensor * scale, (0, width - len(tensor))).contiguous()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    names = ("num_hidden_layers", "hidden_size", "vocab_size")
    config = read_config(source) | {name: grown[name] for name in names} | {"dtype": "bfloat16"}
    config["exit_layers"] = [new_layers[layer] for layer in config["exit_layers"]]
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def mapped(layers: Tensor, new_layers: dict[int, int]) -> Tensor:
    return torch.tensor([new_layers[layer] for layer in layers.tolist()], dtype=layers.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="heads: demo-eagle or a folder")
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="demo", help="the model of the heads")
    parser.add_argument("--grown", type=Path, required=True, help="the same model, grown")
    options = parser.parse_args()
    source, model = (resolve(name, None, quiet=True) for name in (options.source, options.model))
    options.target.mkdir(parents=True, exist_ok=True)
    if "speculators_model_type" in read_config(source):
        grow_eagle(source, options.target, model, read_config(options.grown))
    elif read_config(source).get("model_type") == "hasten_exits":
        grow_exits(source, options.target, read_config(model), read_config(options.grown))
    else:
        grow_medusa(source, options.target, read_config(options.grown))
    print(f"{options.target}: heads of {options.grown}")


if __name__ == "__main__":
    main()
