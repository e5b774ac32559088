"""Tiny checkpoints with a trained tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tiny_checkpoint


def text_checkpoint(tokenizer: Tokenizer, folder: Path) -> Path:
    """Return a random Llama whose vocabulary is that of the tokenizer; ``<s>`` and ``</s>`` begin and end a text."""
    checkpoint = tiny_checkpoint("llama-gqa", folder)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": tokenizer.token_to_id("</s>")}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "generation_config.json").unlink()
    weights = load_file(checkpoint / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.randn(config["vocab_size"], weights[name].shape[1], generator=generator) * 0.3
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(checkpoint)
    return checkpoint
