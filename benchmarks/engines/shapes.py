"""The checkpoints: a published shape with random weights, or the shipped demo model."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3_ROPE,
    },
}
MODELS = (*SHAPES, "demo")
DEMO = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "model"
# Bytes per weight that a step must read; int4 has a 16-bit scale for every group of 128. Q4_K_M has 4.5 bits (Q4_K) in most
# matrices and 6.5625 (Q6_K) in half of the down and value projections, which are two fifteenths of Qwen3-0.6B's layers.
BYTES = {
    "bf16": 2.0,
    "int8": 1.0,
    "int4": 0.5 + 2 / 128,
    "int4-g128": 0.5 + 2 / 128,
    "q4_k_m": (4.5 * 13 + 6.5625 * 2) / 15 / 8,
    "q6_k": 6.5625 / 8,
    "fp8": 1.0,
}


@dataclass(frozen=True, slots=True)
class Costs:
    """The minimum that a model of this shape must read and compute."""

    layer_weights: int  # in the matrices of all layers
    head_weights: int
    kv_values: int  # per token of context, all layers, keys and values
    attention_ops: int  # per pair of a query and a visible key, all layers
    vocab_size: int
    max_positions: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Costs":
        hidden, layers, dim = config["hidden_size"], config["num_hidden_layers"], config["head_dim"]
        query, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
        layer = hidden * (2 * query + 2 * kv) + 3 * hidden * config["intermediate_size"]
        return cls(
            layer_weights=layers * layer,
            head_weights=hidden * config["vocab_size"],
            kv_values=2 * layers * kv,
            attention_ops=4 * layers * query,
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
        )

    def weight_bytes(self, weights: str, lm_head: str) -> float:
        return self.layer_weights * BYTES[weights] + self.head_weights * BYTES[lm_head]

    def cache_bytes(self, context: int, kv: str | None) -> float:
        """Return the bytes of the KV cache of ``context`` tokens in total."""
        return float(context * self.kv_values * (1 if kv == "int8" else 2))

    def prefill_ops(self, tokens: int) -> float:
        """Return multiplications and additions; the lm_head is computed for the last token only."""
        return 2 * (tokens * self.layer_weights + self.head_weights) + self.attention_ops * tokens * (tokens + 1) / 2


def checkpoint(model: str, work_folder: Path, seed: int) -> Path:
    """Return the folder of the checkpoint, which is made if it does not exist."""
    folder = work_folder / model / "checkpoint"
    if (folder / "tokenizer.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if model == "demo":
        for file in DEMO.iterdir():
            shutil.copy(file, folder)
    else:
        _random_weights(SHAPES[model], folder, seed)
        _placeholder_tokenizer(SHAPES[model]["vocab_size"], folder)
    return folder


def costs(folder: Path) -> Costs:
    return Costs.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _random_weights(shape: dict[str, Any], folder: Path, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**shape, dtype="bfloat16", bos_token_id=None, eos_token_id=None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    model.tie_weights()  # undone by to_empty
    model.save_pretrained(folder)


def _placeholder_tokenizer(vocab_size: int, folder: Path) -> None:
    """Write a tokenizer whose words are numbers: converters need one, and no text is decoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"t{number}" for number in range(len(letters), vocab_size)]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), words[-1])  # some converters require them
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
