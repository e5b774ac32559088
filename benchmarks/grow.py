"""A small trained model at the cost of a large one: the same function, in more and larger matrices.

``python benchmarks/grow.py demo grown/demo`` writes a checkpoint of the cost of a model of 0.6 billion parameters whose text is the
demo model's. Random weights of that size would draft and exit like noise, and a trained model of that size is a download.

::

    width       zeros beside every row; RMSNorm divides by the new width, so its weight and epsilon make up for that
    heads       more of them, whose output counts nothing
    layers      some that add nothing, spread evenly between those that do
    vocabulary  rows that can never be chosen: one more input is a small constant, and only they look at it

Every weight is stored and multiplied as any other: engines cannot tell. The two places where a sum changes are the constant's
square in the norms (below the rounding of bf16) and the rounding of the scaled norm weights (exact where width grows by 4 or 16).
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
CONSTANT = 2.0**-12  # in the residual stream: its square vanishes beside any embedding's
LOUDNESS = 4.0  # of the constant after the last norm: no more than other inputs, so that it does not spoil their quantisation
FORBIDDEN = -100.0  # logits of the new tokens, about
DRAFT_VOCABULARY = 32_768  # tokens that drafters guess from, where they guess from a part


@dataclass(frozen=True, slots=True)
class Growth:
    """Factors of the widths, and the new numbers of layers and tokens."""

    width: int
    heads: int
    layers: int
    vocabulary: int


class Grown:
    """The tensors of one Llama checkpoint, grown."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], growth: Growth, last_rms: float) -> None:
        """``last_rms``: of the hidden states before the last norm, which sets how the constant is scaled."""
        self.growth, self.tensors, self.last_rms = growth, tensors, last_rms
        self.hidden, self.width = config["hidden_size"], config["hidden_size"] * growth.width
        self.old = config
        dim = config["head_dim"]
        self.query = config["num_attention_heads"] * dim * growth.heads
        self.key = config["num_key_value_heads"] * dim * growth.heads
        self.inner = config["intermediate_size"] * growth.width

    def config(self) -> dict[str, Any]:
        growth, old = self.growth, self.old
        return old | {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_attention_heads": old["num_attention_heads"] * growth.heads,
            "num_key_value_heads": old["num_key_value_heads"] * growth.heads,
            "num_hidden_layers": growth.layers,
            "vocab_size": growth.vocabulary,
            "rms_norm_eps": old["rms_norm_eps"] / growth.width,
            "tie_word_embeddings": False,
        }

    def all(self) -> dict[str, Tensor]:
        old = self.tensors
        embedding = padded(old["model.embed_tokens.weight"], self.growth.vocabulary, self.width)
        embedding[:, self.hidden] = CONSTANT
        head = padded(old.get("lm_head.weight", old["model.embed_tokens.weight"]), self.growth.vocabulary, self.width)
        head[self.old["vocab_size"] :, self.hidden] = FORBIDDEN / LOUDNESS
        norm = self.norm("model.norm.weight")
        norm[self.hidden] = LOUDNESS * self.last_rms / (CONSTANT * math.sqrt(self.growth.width))
        found = {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": norm}
        sources = dict(zip(self.places(), range(self.old["num_hidden_layers"]), strict=True))
        for layer in range(self.growth.layers):
            found |= self.layer(layer, sources.get(layer))
        return found

    def places(self) -> list[int]:
        """Where the layers that do something go: the first stays first, the others as evenly as can be."""
        old = self.old["num_hidden_layers"]
        return [layer * self.growth.layers // old for layer in range(old)]

    def layer(self, layer: int, source: int | None) -> dict[str, Tensor]:
        """Where there is no source: the first layer's matrices, so that it costs the same, and outputs of zero."""
        new, old = f"model.layers.{layer}.", f"model.layers.{source or 0}."
        shapes = {
            "self_attn.q_proj": (self.query, self.width),
            "self_attn.k_proj": (self.key, self.width),
            "self_attn.v_proj": (self.key, self.width),
            "self_attn.o_proj": (self.width, self.query),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }
        found = {f"{new}{name}.weight": padded(self.tensors[f"{old}{name}.weight"], *shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{new}{name}.weight"] = self.norm(f"{old}{name}.weight")
        if source is None:
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                found[f"{new}{name}.weight"].zero_()
        return found

    def norm(self, name: str) -> Tensor:
        """The mean of squares is over more inputs, most of them zero: smaller by the factor of the width."""
        grown = torch.zeros(self.width, dtype=torch.bfloat16)
        grown[: self.hidden] = self.tensors[name].float() / math.sqrt(self.growth.width)
        return grown


def padded(tensor: Tensor, rows: int, columns: int) -> Tensor:
    grown = torch.zeros(rows, columns, dtype=torch.bfloat16)
    grown[: tensor.shape[0], : tensor.shape[1]] = tensor
    return grown


def sample(folder: Path, num_tokens: int) -> Tensor:
    """Tokens of held-out text [1, T]."""
    from transformers import AutoTokenizer

    with HELDOUT.open(encoding="utf-8") as lines:
        text = json.loads(next(lines))["text"]
    return torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:num_tokens]])


def more_tokens(ids: Tensor, vocab_size: int) -> Tensor:
    """These tokens and as many others as make ``DRAFT_VOCABULARY``, rising."""
    free = torch.ones(vocab_size, dtype=torch.bool).index_fill_(0, ids.long(), False)
    others = free.nonzero().flatten()[: DRAFT_VOCABULARY - len(ids)].to(ids.dtype)
    return torch.cat((ids, others)).sort().values


@torch.inference_mode()
def last_rms(folder: Path, ids_BT: Tensor) -> float:
    """The median, over tokens, of the root mean square before the last norm."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(ids_BT)
    return float(seen[0].pow(2).mean(-1).sqrt().median())


def grow(source: Path, target: Path, growth: Growth) -> None:
    """Raises ``ValueError`` where a number would shrink."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if growth.width < 2 or growth.layers < config["num_hidden_layers"] or growth.vocabulary < config["vocab_size"]:
        raise ValueError(f"{growth} does not grow a model of {config['num_hidden_layers']} layers, {config['vocab_size']} tokens")
    tensors = load_file(source / "model.safetensors")
    grown = Grown(config, tensors, growth, last_rms(source, sample(source, 256)))
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*"):
        if file.name not in ("config.json", "model.safetensors", "training.json"):
            shutil.copy(file, target)
    save_file({name: tensor.contiguous() for name, tensor in grown.all().items()}, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(grown.config(), indent=2) + "\n", encoding="utf-8")
    ids = read_draft_ids(source, config["vocab_size"])
    if ids is not None:
        write_draft_ids(target, more_tokens(ids, growth.vocabulary))


@torch.inference_mode()
def difference(source: Path, target: Path) -> tuple[float, float]:
    """(largest difference of a log-probability, the new tokens' probability together) over held-out text, in float32."""
    from transformers import AutoModelForCausalLM

    ids_BT = sample(source, 128)
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids_BT).logits[0].log_softmax(-1)
        for folder in (source, target)
    )
    return float((new[:, : old.shape[1]] - old).abs().max()), float(new[:, old.shape[1] :].exp().sum(-1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a Llama checkpoint: demo, demo-draft or a folder")
    parser.add_argument("target", type=Path)
    parser.add_argument("--width", type=int, default=4, help="factor of the hidden and the feed-forward width")
    parser.add_argument("--heads", type=int, default=8, help="factor of the number of heads")
    parser.add_argument("--layers", type=float, default=3.5, help="factor of the number of layers")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    options = parser.parse_args()
    source = resolve(options.source, None, quiet=True)
    num_layers = json.loads((source / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    grow(source, options.target, Growth(options.width, options.heads, round(num_layers * options.layers), options.vocabulary))
    most, others = difference(source, options.target)
    print(f"{options.target}: log-probabilities within {most:.2g} of the original's; its new tokens have {others:.2g} together")


if __name__ == "__main__":
    main()
