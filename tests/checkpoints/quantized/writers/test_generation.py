"""Greedy tokens of written checkpoints, on both backends, are those of transformers with the weights that the files mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.quantized_checkpoints import write_dequantized
from tests.written_checkpoints import (
    FP8_PER_TOKEN,
    FP8_STATIC,
    INT8_PER_TOKEN,
    SpecOf,
    floats,
    fp8_groups,
    integers,
    write_checkpoint,
)
from transformers import AutoModelForCausalLM

from hasten import LLM, SamplingParams

PROMPT, NUM_TOKENS = [5, 9, 80, 3, 3, 41, 7], 12
MARGIN = 0.03  # between the two largest logits of each token, so that roundings in kernels do not choose


def layers(scheme: SpecOf) -> SpecOf:
    return lambda module: scheme(module) if "layers" in module else None


CASES: dict[str, tuple[str, str, SpecOf]] = {  # name -> model, format, scheme by module
    "gptq": ("qwen3-tied-bias", "gptq", layers(lambda _: integers("GPTQ", 4))),
    "gptq-mixed": ("llama-gqa", "gptq", layers(lambda name: integers("GPTQ", 8 if "mlp" in name else 3, None))),
    "awq": ("llama-mqa-bias", "awq", layers(lambda _: replace(integers("AWQ", 4), zero=None))),
    "fp8": ("wide", "fp8", layers(lambda _: floats("FP8", (128, 128), fp8_groups(128)))),
    "w4a16": ("qwen3-gqa", "compressed-tensors", layers(lambda _: integers("compressed-tensors", 4))),
    "w8a8": ("llama-gqa", "compressed-tensors", layers(lambda _: integers("compressed-tensors", 8, None, INT8_PER_TOKEN))),
    "w4a8": ("llama-gqa", "compressed-tensors", layers(lambda _: integers("compressed-tensors", 4, 32, INT8_PER_TOKEN))),
    "fp8-dynamic": ("llama-gqa", "compressed-tensors", layers(lambda _: floats("compressed-tensors", "channel", FP8_PER_TOKEN))),
    "mixed": (
        "qwen3-tied-bias",
        "compressed-tensors",
        layers(
            lambda name: (
                floats("compressed-tensors", "tensor", FP8_STATIC) if "mlp" in name else integers("compressed-tensors", 8, None)
            )
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_the_dequantised_weights(name: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    model, form, spec_of = CASES[name]
    written = write_checkpoint(tmp_path / "own", source(model), form, spec_of)
    write_dequantized(tmp_path / "plain", source(model), written.weights)
    expected = _greedy_tokens(tmp_path / "plain")
    params = SamplingParams(temperature=0, max_tokens=len(expected), ignore_eos=True)
    for backend in ("cpu", "torch"):
        with LLM(str(written.folder), backend=backend, threads=1, activations="float") as llm:
            (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
        assert list(output.outputs[0].token_ids) == expected, backend


def _greedy_tokens(folder: Path) -> list[int]:
    """Return the tokens of transformers before the first one that is not clear."""
    model, tokens = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), list(PROMPT)
    with torch.inference_mode():
        while len(tokens) < len(PROMPT) + NUM_TOKENS:
            best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
            if best.values[0] - best.values[1] < MARGIN:
                break
            tokens.append(int(best.indices[0]))
    assert len(tokens) >= len(PROMPT) + NUM_TOKENS // 3
    return tokens[len(PROMPT) :]
