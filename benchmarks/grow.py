"""Widen a small trained model to the cost of a large one, with the same outputs.

``python benchmarks/grow.py demo grown/demo`` writes a checkpoint with the cost of a model of 0.6 billion parameters and the demo
model's text. Random weights of that size would draft and exit like noise, and a trained model of that size needs a download.

::

    width       zeros beside every row; the norm's weight and epsilon compensate for the new width in RMSNorm
    heads       additional heads, whose outputs are multiplied by zero
    layers      additional layers that add zero, spread evenly between the original ones
    vocabulary  rows that are never chosen: only they read one more hidden dimension, which is a small constant

Every weight is stored and multiplied as usual, so an engine cannot skip it. Sums change in two places. The norms include the square
of the constant, which is below the rounding of bf16. The scaled norm weights are rounded, unless width grows by 4 or 16.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hasten
from hasten.checkpoints.formats.draft_ids import read_draft_ids, write_draft_ids
from hasten.checkpoints.hub import resolve

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
CONSTANT = 2.0**-12  # of the residual stream; its square is negligible beside that of an embedding
NORMED_CONSTANT = 4.0  # after the last norm; not larger than other inputs, so that it does not harm quantisation
NEW_TOKEN_LOGIT = -100.0  # approximate logits of the new tokens
DRAFT_VOCAB_SIZE = 32_768  # of drafters with a truncated vocabulary


@dataclass(frozen=True, slots=True)
class Growth:
    """Factors of the widths, and the new numbers of layers and tokens."""

    width: int
    heads: int
    layers: int
    vocab_size: int


class GrownModel:
    """The configuration and the tensors of one grown Llama checkpoint."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], growth: Growth, last_rms: float) -> None:
        """``last_rms`` is that of the hidden states before the last norm. It scales the constant."""
        self.growth, self.tensors, self.last_rms = growth, tensors, last_rms
        self.old_hidden_size, self.hidden_size = config["hidden_size"], config["hidden_size"] * growth.width
        self.old_config = config
        dim = config["head_dim"]
        self.query_size = config["num_attention_heads"] * dim * growth.heads
        self.key_size = config["num_key_value_heads"] * dim * growth.heads
        self.intermediate_size = config["intermediate_size"] * growth.width

    def config(self) -> dict[str, Any]:
        growth, old = self.growth, self.old_config
        return old | {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": old["num_attention_heads"] * growth.heads,
            "num_key_value_heads": old["num_key_value_heads"] * growth.heads,
            "num_hidden_layers": growth.layers,
            "vocab_size": growth.vocab_size,
            "rms_norm_eps": old["rms_norm_eps"] / growth.width,
            "tie_word_embeddings": False,
        }

    def all_tensors(self) -> dict[str, Tensor]:
        old, growth = self.tensors, self.growth
        embedding = zero_padded(old["model.embed_tokens.weight"], growth.vocab_size, self.hidden_size)
        embedding[:, self.old_hidden_size] = CONSTANT
        lm_head = old.get("lm_head.weight", old["model.embed_tokens.weight"])
        lm_head = zero_padded(lm_head, growth.vocab_size, self.hidden_size)
        lm_head[self.old_config["vocab_size"] :, self.old_hidden_size] = NEW_TOKEN_LOGIT / NORMED_CONSTANT
        norm = self.norm("model.norm.weight")
        norm[self.old_hidden_size] = NORMED_CONSTANT * self.last_rms / (CONSTANT * math.sqrt(growth.width))
        tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": lm_head, "model.norm.weight": norm}
        indices = layer_indices(self.old_config["num_hidden_layers"], growth.layers)
        old_layers = {index: old_layer for old_layer, index in enumerate(indices)}
        for layer in range(growth.layers):
            tensors |= self.layer(layer, old_layers.get(layer))
        return tensors

    def layer(self, layer: int, old_layer: int | None) -> dict[str, Tensor]:
        """Return the tensors of one layer. A new layer has the first layer's matrices and outputs zero."""
        new, old = f"model.layers.{layer}.", f"model.layers.{old_layer or 0}."
        shapes = {
            "self_attn.q_proj": (self.query_size, self.hidden_size),
            "self_attn.k_proj": (self.key_size, self.hidden_size),
            "self_attn.v_proj": (self.key_size, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, self.query_size),
            "mlp.gate_proj": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }
        tensors = {
            f"{new}{name}.weight": zero_padded(self.tensors[f"{old}{name}.weight"], *shape) for name, shape in shapes.items()
        }
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{new}{name}.weight"] = self.norm(f"{old}{name}.weight")
        if old_layer is None:
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                tensors[f"{new}{name}.weight"].zero_()
        return tensors

    def norm(self, name: str) -> Tensor:
        """Return a norm's weight, smaller because the mean of squares is over more inputs, most of them zero."""
        grown = torch.zeros(self.hidden_size, dtype=torch.bfloat16)
        grown[: self.old_hidden_size] = self.tensors[name].float() / math.sqrt(self.growth.width)
        return grown


def layer_indices(old_layers: int, new_layers: int) -> list[int]:
    """Return where the original layers go: the first stays first, the others are spread evenly."""
    return [layer * new_layers // old_layers for layer in range(old_layers)]


def zero_padded(tensor: Tensor, rows: int, columns: int) -> Tensor:
    grown = torch.zeros(rows, columns, dtype=torch.bfloat16)
    grown[: tensor.shape[0], : tensor.shape[1]] = tensor
    return grown


def heldout_ids(folder: Path, num_tokens: int) -> Tensor:
    """Return tokens of held-out text [1, T]."""
    from transformers import AutoTokenizer

    with HELDOUT.open(encoding="utf-8") as lines:
        text = json.loads(next(lines))["text"]
    return torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:num_tokens]])


def grown_draft_ids(ids: Tensor, vocab_size: int) -> Tensor:
    """Return these token ids and others up to ``DRAFT_VOCAB_SIZE``, rising."""
    is_new = torch.ones(vocab_size, dtype=torch.bool).index_fill_(0, ids.long(), False)
    others = is_new.nonzero().flatten()[: DRAFT_VOCAB_SIZE - len(ids)].to(ids.dtype)
    return torch.cat((ids, others)).sort().values


@torch.inference_mode()
def last_rms(folder: Path, ids_BT: Tensor) -> float:
    """Return the median, over tokens, of the root mean square before the last norm."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model(ids_BT)
    return float(inputs[0].pow(2).mean(-1).sqrt().median())


def grow(source: Path, target: Path, growth: Growth) -> None:
    """Write the grown checkpoint. Raises ``ValueError`` where a size would shrink."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if growth.width < 2 or growth.layers < config["num_hidden_layers"] or growth.vocab_size < config["vocab_size"]:
        raise ValueError(f"{growth} does not grow a model of {config['num_hidden_layers']} layers, {config['vocab_size']} tokens")
    tensors = load_file(source / "model.safetensors")
    grown = GrownModel(config, tensors, growth, last_rms(source, heldout_ids(source, 256)))
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*"):
        if file.name not in ("config.json", "model.safetensors", "training.json"):
            shutil.copy(file, target)
    grown_tensors = {name: tensor.contiguous() for name, tensor in grown.all_tensors().items()}
    save_file(grown_tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(grown.config(), indent=2) + "\n", encoding="utf-8")
    draft_ids = read_draft_ids(source, config["vocab_size"])
    if draft_ids is not None:
        write_draft_ids(target, grown_draft_ids(draft_ids, growth.vocab_size))


@torch.inference_mode()
def difference(source: Path, target: Path) -> tuple[float, float]:
    """Return the largest difference of a log-probability, and the total probability of new tokens."""
    from transformers import AutoModelForCausalLM

    ids_BT = heldout_ids(source, 128)
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids_BT).logits[0].log_softmax(-1)
        for folder in (source, target)
    )
    return float((new[:, : old.shape[1]] - old).abs().max()), float(new[:, old.shape[1] :].exp().sum(-1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a Llama checkpoint: demo, demo-draft or a folder")
    parser.add_argument("target", type=Path)
    parser.add_argument("--width", type=int, default=4, help="factor of the hidden and the MLP width")
    parser.add_argument("--heads", type=int, default=8, help="factor of the number of heads")
    parser.add_argument("--layers", type=float, default=3.5, help="factor of the number of layers")
    parser.add_argument("--vocabulary", type=int, default=151_936, help="number of tokens")
    options = parser.parse_args()
    source = resolve(options.source, None, quiet=True)
    num_layers = json.loads((source / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    grow(source, options.target, Growth(options.width, options.heads, round(num_layers * options.layers), options.vocabulary))
    largest, new_tokens = difference(source, options.target)
    print(f"{options.target}: log-probabilities differ by at most {largest:.2g}; all new tokens have probability {new_tokens:.2g}")


if __name__ == "__main__":
    main()
