"""Models, rounded layers and held-out texts for the tests and the benchmark of mixed precision."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.mixed.assignment import ModelBytes
from hasten.compress.quantize.rounding.rtn import Rtn
from hasten.compress.quantize.transforms.scaled_input import dense_weight
from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.models.layer_stream import LayerStream
from hasten.quality.documents import HELD_OUT, read_texts
from hasten.quality.window import TokenText, Window
from tests.tiny_models import SIZES

DEMO = Path(__file__).parents[1] / "src" / "hasten" / "demo"
DROPPED = (3, 5)  # of the demo's eight layers
BITS = (4, 8, 16)
GROUP_SIZE = 32
CASES = tuple(product(BITS, repeat=6))


def small_six_layers(folder: Path, seed: int) -> Path:
    """Return a random Llama whose layers differ in sensitivity by planted outliers."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES | {"num_hidden_layers": 6}, initializer_range=0.06)
    LlamaForCausalLM(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    plant_outliers(weights, seed, {0: 3, 1: 0, 2: 8, 3: 1, 4: 0, 5: 2})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def demo_six_layers(folder: Path, seed: int) -> Path:
    """Return the demo without two layers. Planted outliers make some of the others sensitive."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [index for index in range(8) if index not in DROPPED]
    weights = {}
    for name, weight in load_file(DEMO / "model" / "model.safetensors").items():
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) in DROPPED:
                continue
            parts[2] = str(kept.index(int(parts[2])))
        weights[".".join(parts)] = weight
    if seed:
        draw = torch.Generator().manual_seed(seed)
        plant_outliers(weights, seed, {layer: int(torch.randint(0, 24, (1,), generator=draw)) for layer in range(6)})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((DEMO / "model" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    return folder


def plant_outliers(weights: dict[str, Tensor], seed: int, counts: dict[int, int]) -> None:
    """Scale inputs of down_proj up and the rows of up_proj that produce them down: the model computes the same, to a rounding."""
    draw = torch.Generator().manual_seed(seed)
    for layer, count in counts.items():
        up, down = (f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("up", "down"))
        factors = torch.ones(len(weights[up]))
        factors[torch.randperm(len(factors), generator=draw)[:count]] = 16
        weights[up] = (weights[up].float() / factors[:, None]).to(weights[up].dtype)
        weights[down] = (weights[down].float() * factors).to(weights[down].dtype)


def rounded(weight: Tensor, bits: int, group_size: int = GROUP_SIZE) -> Tensor:
    """Return the matrix rounded to nearest, float32."""
    spec = QuantSpec(scheme="RTN", kind="int", bits=bits, granularity="group", group_size=group_size, zero=1 << (bits - 1))
    return Rtn().quantize(weight.float(), Grid(spec, torch.bfloat16), None, "weight").dequantize()


class RoundedLayers:
    """Layers of a stream, rounded to nearest; each is computed once."""

    def __init__(self, stream: LayerStream, group_size: int = GROUP_SIZE) -> None:
        self.stream, self.group_size = stream, group_size
        self._layers: dict[tuple[int, int], DecoderLayer] = {}

    def __call__(self, index: int, bits: int) -> DecoderLayer:
        if (index, bits) not in self._layers:
            layer = self.stream.layer(index)
            for linear in (layer.attention.qkv, layer.attention.out, layer.mlp.up, layer.mlp.down) if bits < 16 else ():
                with torch.no_grad():
                    dense_weight(linear).copy_(rounded(dense_weight(linear), bits, self.group_size))
            self._layers[index, bits] = layer
        return self._layers[index, bits]

    def sizes(self) -> ModelBytes:
        """Return the bytes of codes and bfloat16 scales; the rest of the model counts nothing, which makes shares strict."""
        layer = self(0, 16)
        count = sum(dense_weight(x).numel() for x in (layer.attention.qkv, layer.attention.out, layer.mlp.up, layer.mlp.down))
        sizes = {bits: count * bits // 8 + (2 * count // self.group_size if bits < 16 else 0) for bits in BITS}
        return ModelBytes(layers=[sizes] * len(self.stream.spec.layers), others=0)


def split_heldout(seed: int, length: int = 1) -> tuple[list[TokenText], list[TokenText]]:
    """Return 30 and 15 of the 45 held-out texts in a random order, cut to windows of whole ``length``."""
    tokenizer = Tokenizer.from_file(str(DEMO / "model" / "tokenizer.json"))
    ids = [tuple(tokenizer.encode(text).ids) for text in read_texts(HELD_OUT)]
    texts = [TokenText(text[: (len(text) - 1) // length * length + 1]) for text in ids]
    random.Random(seed).shuffle(texts)
    return texts[:30], texts[30:]


def kl_of_all(layers: RoundedLayers, text: list[Window]) -> dict[tuple[int, ...], Tensor]:
    """Return the KL of each window under each of the 729 assignments, by the formula.

    All windows have one length. Assignments that begin alike share the passes of the layers.
    """
    stream = layers.stream
    hidden = stream.embed(torch.tensor([window.token_ids[:-1] for window in text]))

    def run(index: int, bits: int, inputs: Tensor) -> Tensor:
        return torch.cat([outputs for _, outputs in stream.run(layers(index, bits), index, inputs)])

    def log_probs(outputs: Tensor) -> Tensor:
        return stream.logits(outputs.flatten(0, 1)).log_softmax(-1)

    def walk(inputs: Tensor, bits: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        if len(bits) == 6:
            yield bits, (probs * (original - log_probs(inputs))).sum(-1).reshape(len(text), -1).mean(1).double()
            return
        for choice in BITS:
            yield from walk(run(len(bits), choice, inputs), (*bits, choice))

    outputs = hidden
    for index in range(6):
        outputs = run(index, 16, outputs)
    original = log_probs(outputs)
    probs = original.exp()
    return dict(walk(hidden, ()))
