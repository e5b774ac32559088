"""Whole quantised checkpoints on native kernels: greedy tokens are those of the dequantised weights in float32.

The oracle is transformers with the weights that each scheme means, and with inputs rounded to int8 where the kernels do that. Where
its two largest logits differ by more than the bound of the comparison, the token must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.layers.formats.packed import Packed
from hasten.models.load import load_decoder, read_spec
from hasten.ops.cpu.cpu import Dtype
from hasten.runners.backends.choose import choose_backend
from tests import compressed_checkpoints, gguf_files, quantized_checkpoints
from tests.engine.paged_runner import PagedRunner
from tests.tiny_models import TINY, TinyModel

PROMPT, NUM_TOKENS = [5, 9, 80, 3, 3, 41, 7], 24
# Bounds of the difference, relative to the largest logit. An input may be rounded to the other int8 neighbour.
FLOAT, INT8 = 1e-3, 0.05
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}  # rows that K blocks divide

Writer = Callable[[Path, Path], dict[str, Tensor]]  # (target, float checkpoint) -> the weights that the target means


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    write: Writer
    dtypes: frozenset[Dtype]  # of the native matrices beside those of the model's dtype
    bound: float = FLOAT
    activations: str = "auto"
    file: str = "model"


def gptq(model: str = "llama-gqa", dtype: Dtype = Dtype.CODES4, **options: object) -> Case:
    return Case(model, partial(quantized_checkpoints.write_gptq, **options), frozenset({dtype}))


def compressed(kind: str, dtype: Dtype, bound: float = FLOAT) -> Case:
    return Case("llama-gqa", partial(compressed_checkpoints.write_compressed, kind=kind), frozenset({dtype}), bound)


def gguf(model: str, types: str, *dtypes: Dtype) -> Case:
    return Case(model, partial(gguf_files.write_gguf, types=types), frozenset(dtypes), file="model.gguf")


CASES: dict[str, Case] = {
    "gptq": gptq(),
    "gptq-2-bits": gptq(bits=2),
    "gptq-3-bits-asymmetric": gptq(bits=3, symmetric=False),
    "gptq-8-bits-v2": gptq(dtype=Dtype.CODES8, bits=8, symmetric=False, version=2),
    "gptq-act-order": gptq("qwen3-gqa", desc_act=True, symmetric=False, group_size=16),
    "gptq-lm-head": gptq("mistral-window", lm_head=True, version=2),
    "gptq-rows": gptq("qwen2-mixed-window", group_size=-1),
    "gptq-int8": Case("llama-gqa", quantized_checkpoints.write_gptq, frozenset({Dtype.CODES4}), INT8, "int8"),
    "awq": Case("llama-mqa-bias", quantized_checkpoints.write_awq, frozenset({Dtype.CODES4})),
    "fp8-blocks": Case("llama-gqa", quantized_checkpoints.write_fp8, frozenset({Dtype.FP8})),
    "fp8-tensor": Case("qwen3-gqa", partial(quantized_checkpoints.write_fp8, block="tensor", static=True), frozenset({Dtype.FP8})),
    "w4a16": compressed("w4a16", Dtype.CODES4),
    "w4a16-offsets": compressed("w4a16-offsets", Dtype.CODES4),
    "w3a16": compressed("w3a16", Dtype.CODES4),
    "w8a16-channel": compressed("w8a16-channel", Dtype.INT8),
    "w8a8": compressed("w8a8", Dtype.INT8, INT8),
    "w8a8-static": compressed("w8a8-static", Dtype.INT8, INT8),
    "w8a8-offsets": compressed("w8a8-offsets", Dtype.CODES8, INT8),
    "w4a8": compressed("w4a8", Dtype.CODES4, INT8),
    "fp8-dynamic": compressed("fp8-dynamic", Dtype.FP8),
    "fp8-block": compressed("fp8-block", Dtype.FP8),
    "mxfp8": compressed("mxfp8", Dtype.FP8),
    "mxfp4": compressed("mxfp4", Dtype.CODES8),
    "nvfp4": compressed("nvfp4", Dtype.CODES8),
    "q4_0": gguf("llama-gqa", "Q4_0", Dtype.CODES4),
    "q4_1": gguf("qwen2-tied", "Q4_1", Dtype.CODES4),
    "q5_0": gguf("qwen3-gqa", "Q5_0", Dtype.CODES8),
    "q5_1": gguf("llama-llama3", "Q5_1", Dtype.CODES8),
    "q8_0": gguf("gpt2", "Q8_0", Dtype.CODES8),
    "q4_k": gguf("wide", "Q4_K", Dtype.CODES4),
    "q5_k": gguf("wide", "Q5_K", Dtype.CODES8),
    "q6_k": gguf("wide", "Q6_K", Dtype.CODES8),
    "f16": gguf("llama-mha-tied", "F16"),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_the_dequantised_weights(
    name: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setitem(TINY, "wide", TinyModel("Llama", WIDE))
    source, target = tiny(case.model), tmp_path / case.file
    weights = case.write(target, source)
    tokens, expected = oracle(source, weights, int8_activations=case.bound == INT8)
    found, dtypes = native_logits(target, tokens, case.activations)
    assert dtypes >= case.dtypes
    bound = case.bound * expected.abs().amax().item()
    assert (found - expected).abs().amax() <= bound
    top = expected.topk(2).values
    is_clear = top[:, 0] - top[:, 1] > 2 * bound
    assert is_clear.sum() >= NUM_TOKENS // 3
    assert torch.equal(found.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


def round_to_int8(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Round each row to whole multiples of a 127th of its largest magnitude."""
    scale = inputs[0].abs().amax(-1, keepdim=True) / 127
    return ((inputs[0] / scale).round() * scale,)


def oracle(source: Path, weights: dict[str, Tensor], *, int8_activations: bool) -> tuple[list[int], Tensor]:
    """Return a greedy continuation of the prompt, and the logits of each position."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    missing = model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    assert not missing.unexpected_keys
    for name, module in model.named_modules():
        if int8_activations and f"{name}.weight" in weights:
            module.register_forward_pre_hook(round_to_int8)
    tokens = list(PROMPT)
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens, model(torch.tensor([tokens])).logits[0]


def native_logits(folder: Path, tokens: list[int], activations: str) -> tuple[Tensor, set[Dtype]]:
    backend = choose_backend(EngineOptions(backend="cpu", threads=1, activations=activations), read_spec(Checkpoint.open(folder)))
    model = load_decoder(folder, dtype="float32", ops=backend.ops, formats=backend.formats)
    dtypes = {part.matrix.dtype for part in model.decoder.modules() if isinstance(part, Packed)}
    return torch.cat(PagedRunner(backend, model, 16).prompt_logits(tokens)), dtypes
