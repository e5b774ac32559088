"""The shipped models are what their card says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import hasten
from hasten import LLM, SamplingParams
from hasten.checkpoints.hub import resolve
from hasten.layers.context import DenseContext
from hasten.models.load import load_decoder
from hasten.ops.choose import choose_ops

DEMO = Path(hasten.__file__).parent / "demo"


def held_out() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sizes_and_shapes() -> None:
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) <= 40_000_000
    ops, _ = choose_ops("cpu")
    model, draft = (load_decoder(resolve(name), ops=ops) for name in ("demo", "demo-draft"))
    size, small = (sum(p.numel() for p in loaded.decoder.parameters()) for loaded in (model, draft))
    assert 6e6 <= size <= 12e6 and 4 <= size / small <= 8
    spec, attention = model.spec, model.spec.layers[0].attention
    assert spec.num_layers >= 8 and attention.head_dim == 64 and attention.num_kv_heads >= 2 and spec.max_positions == 4096
    assert spec.hidden_size % 128 == 0 and spec.layers[0].mlp.intermediate_size % 128 == 0
    assert (resolve("demo") / "tokenizer.json").read_bytes() == (resolve("demo-draft") / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["demo", "demo-draft"])
def test_held_out_bits_per_byte_are_those_of_the_card(name: str) -> None:
    """With hasten's own decoder, which knows nothing of how the card was computed."""
    llm, (ops, _) = LLM(name, kv_cache_memory="1MiB", max_model_len=64), choose_ops("cpu")
    loaded = load_decoder(resolve(name), dtype="float32", ops=ops)
    nats = size = 0.0
    for document in held_out()[::4]:
        ids = torch.tensor(llm.tokenizer.encode(document["text"]))
        size += len(document["text"].encode())
        for start in range(0, len(ids) - 1, 4096):
            chunk = ids[start : start + 4097]
            context = DenseContext(ops, loaded.decoder.rotary, [len(chunk) - 1])
            with torch.inference_mode():
                hidden = loaded.decoder.run(loaded.decoder.embed(chunk[:-1]), context.positions_T, context)
                nats += float(F.cross_entropy(loaded.decoder.head(hidden), chunk[1:], reduction="sum"))
    card = json.loads((resolve(name) / "training.json").read_text())["quality"]["all"]["bits_per_byte"]
    assert nats / math.log(2) / size == pytest.approx(card, rel=0.1)  # a quarter of the files
    assert card <= (1.0 if name == "demo" else 1.5)


def test_reserved_tokens_and_template() -> None:
    tokenizer = LLM("demo", kv_cache_memory="1MiB", max_model_len=64).tokenizer
    for token in ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"):
        assert len(tokenizer.encode(token, special=False)) == 1
    text = "def f(x):\n    return x + 1  # naïve 你好 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text, special=False), skip_special_tokens=False) == text


def test_it_completes_code_with_code() -> None:
    """Greedy completions of a few beginnings must parse as far as they go: indentation and brackets were learnt."""
    llm = LLM("demo", max_model_len=512, kv_cache_memory="32MiB")
    prompts = ["import os\nimport sys\n\n\ndef main(argv):\n", "class Node:\n    def __init__(self, value):\n"]
    for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=48, repetition_penalty=1.05), use_tqdm=False):
        lines = (str(output.prompt) + output.outputs[0].text).splitlines()
        for end in range(len(lines), 1, -1):
            try:
                compile("\n".join(lines[:end]) + "\n", "completion", "exec")
                break
            except SyntaxError:
                continue
        assert end >= len(str(output.prompt).splitlines()) + 1, lines
