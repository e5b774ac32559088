"""Held-out bits per byte and next-token accuracy: ``python evaluate.py MODEL --docs DIR``."""

import argparse
import json
import math
from pathlib import Path

import corpus
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast


@torch.inference_mode()
def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: list[corpus.Document]
) -> dict[str, dict[str, float]]:
    """Return the figures per kind of document and of all. Each chunk is read without the one before."""
    totals: dict[str, list[float]] = {}
    context = model.config.max_position_embeddings
    for document in documents:
        ids = torch.tensor(tokenizer(document.text, verbose=False)["input_ids"])
        counts = [0.0, 0.0, 0.0, float(len(document.text.encode()))]  # nats, hits, tokens, bytes
        for start in range(0, len(ids) - 1, context):
            chunk = ids[start : start + context + 1].to(model.device)
            logits = model(chunk[None, :-1]).logits[0].float()
            counts[0] += F.cross_entropy(logits, chunk[1:], reduction="sum").item()
            counts[1] += (logits.argmax(-1) == chunk[1:]).sum().item()
            counts[2] += len(chunk) - 1
        for key in (document.kind, "all"):
            totals[key] = [a + b for a, b in zip(totals.get(key, [0.0] * 4), counts, strict=True)]
    return {
        key: {
            "bits_per_byte": round(nats / math.log(2) / size, 4),
            "next_token_accuracy": round(hits / tokens, 4),
            "tokens": int(tokens),
            "bytes": int(size),
        }
        for key, (nats, hits, tokens, size) in sorted(totals.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--docs", type=Path, required=True)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    print(json.dumps(bits_per_byte(model, tokenizer, corpus.load(options.docs)[1]), indent=1))


if __name__ == "__main__":
    main()
