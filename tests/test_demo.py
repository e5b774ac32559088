"""The shipped models match their model card."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import hasten
from hasten import LLM, SamplingParams
from hasten.checkpoints.hub import resolve
from hasten.layers.attention import DenseContext
from hasten.models.load import load_decoder
from hasten.ops.choose import choose_ops

DEMO = Path(hasten.__file__).parent / "demo"


def held_out_documents() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sizes_and_shapes() -> None:
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) <= 40_000_000
    ops, _ = choose_ops()
    model, draft = (load_decoder(resolve(name), ops=ops) for name in ("demo", "demo-draft"))
    num_parameters, num_draft_parameters = (sum(p.numel() for p in loaded.decoder.parameters()) for loaded in (model, draft))
    assert 6e6 <= num_parameters <= 12e6 and 4 <= num_parameters / num_draft_parameters <= 8
    spec, attention = model.spec, model.spec.layers[0].attention
    assert spec.num_layers >= 8 and attention.head_dim == 64 and attention.num_kv_heads >= 2 and spec.max_positions == 4096
    assert spec.hidden_size % 128 == 0 and spec.layers[0].mlp.intermediate_size % 128 == 0
    assert (resolve("demo") / "tokenizer.json").read_bytes() == (resolve("demo-draft") / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["demo", "demo-draft"])
def test_held_out_bits_per_byte_match_the_card(name: str) -> None:
    """Recompute the card's bits per byte, which come from independent code, with hasten's decoder."""
    llm, (ops, _) = LLM(name, kv_cache_memory="1MiB", max_model_len=64), choose_ops()
    loaded = load_decoder(resolve(name), dtype="float32", ops=ops)
    nats = num_bytes = 0.0
    for document in held_out_documents()[::4]:
        ids = torch.tensor(llm.tokenizer.encode(document["text"]))
        num_bytes += len(document["text"].encode())
        for start in range(0, len(ids) - 1, 4096):
            chunk = ids[start : start + 4097]
            context = DenseContext(ops, loaded.decoder.rotary, [len(chunk) - 1])
            with torch.inference_mode():
                hidden = loaded.decoder.run(loaded.decoder.embed(chunk[:-1]), context.positions_T, context)
                nats += float(F.cross_entropy(loaded.decoder.head(hidden), chunk[1:], reduction="sum"))
    card = json.loads((resolve(name) / "training.json").read_text())["quality"]["all"]["bits_per_byte"]
    assert nats / math.log(2) / num_bytes == pytest.approx(card, rel=0.1)  # a quarter of the files
    assert name != "demo" or card <= 1.0  # the limit of the demo model; its draft model has none


def test_reserved_tokens_and_template() -> None:
    tokenizer = LLM("demo", kv_cache_memory="1MiB", max_model_len=64).tokenizer
    for token in ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    text = "def f(x):\n    return x + 1  # naïve 你好 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "prompt", ["class Node:\n    def __init__(self, value):", "def read_file(path):\n    with open(path) as f:"]
)
def test_code_is_completed_as_code(prompt: str) -> None:
    """The prompt with its greedy completion parses as Python beyond the prompt's last line."""
    llm = LLM("demo", max_model_len=512, kv_cache_memory="32MiB")
    params = SamplingParams(temperature=0, max_tokens=48, repetition_penalty=1.05)
    lines = (prompt + llm.generate(prompt, params)[0].outputs[0].text).splitlines()
    assert parsed_lines(lines) > len(prompt.splitlines()), lines


def parsed_lines(lines: list[str]) -> int:
    """Return the number of leading lines that parse as a Python program."""
    for end in range(len(lines), 0, -1):
        try:
            ast.parse("\n".join(lines[:end]))
        except SyntaxError:
            continue
        return end
    return 0


def test_documentation_is_completed_as_english() -> None:
    """At least 85 % of the words in sampled completions occur in the held-out files."""
    vocabulary = set(re.findall(r"[a-z]{3,}", "".join(document["text"].lower() for document in held_out_documents())))
    llm = LLM("demo", max_model_len=512, kv_cache_memory="32MiB")
    params = SamplingParams(temperature=0.7, top_p=0.9, n=4, seed=1, max_tokens=60)
    text = " ".join(completion.text for completion in llm.generate("This function returns", params)[0].outputs)
    words = re.findall(r"[a-z]{3,}", text.lower())
    assert len(words) > 60
    assert sum(word in vocabulary for word in words) / len(words) > 0.85, text
