"""Random shapes of models: the native kernels give the logits of transformers, on every instruction set, or refuse by name.

Head sizes from 1 to 600, odd ones too, one head or many, layers wider than 16 bits count. A case runs in two weight formats.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.core.plan import RowPlan, StepPlan
from hasten.engine.kv_cache_sizing import kv_groups
from hasten.models.load import load_decoder, read_spec
from hasten.ops.cpu.cpu import ISA_VARIABLE, supported_isas
from hasten.ops.cpu.library import NativeLibrary, native_library
from hasten.runners.backends.choose import choose_backend
from hasten.runners.base import KvCacheConfig
from tests.fuzz.report import Report
from tests.tiny_models import redraw

VOCAB_SIZE, BLOCK_SIZE = 40, 16
PROMPTS = [[7], [3, 9, 27, 1, 3], [i * 7 % VOCAB_SIZE for i in range(33)]]  # forms for few and for many rows
IDS = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
# Largest relative error of the logits, by options. Float32 and equal bits on every instruction set find faults of the kernels.
FORMATS: list[tuple[dict[str, str], float]] = [
    ({"dtype": "float32"}, 1e-3),
    ({"dtype": "bfloat16"}, 0.15),
    ({"dtype": "float16"}, 0.03),
    ({"dtype": "float32", "kv_cache_dtype": "int8"}, 0.3),
    ({"dtype": "float32", "quantization": "int8"}, 0.4),
    ({"dtype": "bfloat16", "quantization": "int4"}, 0.8),
    ({"dtype": "float32", "quantization": "int8-weight-only"}, 0.3),
    ({"dtype": "float16", "quantization": "int4-weight-only"}, 0.8),
]


class Shape(NamedTuple):
    family: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int

    def model(self) -> PreTrainedModel:
        if self.family == "gpt2":
            sizes = {"n_embd": self.num_heads * self.head_dim, "n_head": self.num_heads, "n_inner": self.intermediate_size}
            model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**sizes, n_layer=2, n_positions=64, **IDS))
        else:
            names = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "intermediate_size")
            sizes = dict(zip(names, self[1:], strict=True))
            model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, max_position_embeddings=64, **IDS))
        redraw(model, sum(self[1:]))
        return model.eval().requires_grad_(False)


def run(rng: random.Random, cases: int, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="hasten-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for draw in report.each(rng, cases):
            shape = random_shape(draw)
            report.case = str(shape)
            for fault in compare(shape, draw.sample(FORMATS, 2), Path(folder), report):
                report.fail(fault)


def random_shape(draw: random.Random) -> Shape:
    kv_heads = draw.choice((1, 1, 2, 3))
    heads = kv_heads * draw.choice((1, 1, 2, 5))
    head_dim = draw.randint(1, 600) if draw.random() < 0.3 else draw.randint(1, 80)
    if heads * head_dim > 1_000:  # large models take long and say no more
        heads = kv_heads = 1
    width = draw.choice((draw.randint(1, 200), draw.randint(1, 2_000), draw.randint(60_000, 140_000)))
    if draw.random() < 0.5:
        return Shape("gpt2", heads, heads, head_dim, heads * head_dim, min(width, 2_000))
    return Shape("llama", heads, kv_heads, head_dim + head_dim % 2, heads * draw.randint(1, 60 // heads), width)


def compare(shape: Shape, formats: Sequence[tuple[dict[str, str], float]], folder: Path, report: Report) -> list[str]:
    """Return the faults of one shape. Counts the outcomes in ``report``."""
    library = native_library()
    assert isinstance(library, NativeLibrary), library
    reference, faults = shape.model(), []
    reference.save_pretrained(folder)
    expected = torch.cat([reference(torch.tensor([prompt])).logits[0] for prompt in PROMPTS])
    forced = os.environ.get(ISA_VARIABLE)
    try:
        for options, tolerance in formats:
            first = None
            for isa in supported_isas(library):
                os.environ[ISA_VARIABLE] = isa
                part = refusal(shape, options)
                try:
                    actual = logits(folder, options)
                except InvalidOption as error:
                    report.outcomes["refused"] += 1
                    faults += [] if part is not None and part in str(error) else [f"{options} is refused on {isa}: {error}"]
                    continue
                report.outcomes["compared"] += 1
                error_share = float((actual - expected).norm() / expected.norm())
                faults += [] if part is None else [f"{options} is not refused on {isa}"]
                faults += [] if error_share <= tolerance else [f"{options} on {isa}: the logits are off by {error_share:.3g}"]
                if not (isa == "amx" and options["dtype"] == "bfloat16"):  # whose tiles round activations
                    first = actual if first is None else first
                    faults += [] if torch.equal(actual, first) else [f"{options} on {isa}: other bits than elsewhere"]
    finally:
        os.environ.pop(ISA_VARIABLE, None)
        if forced is not None:
            os.environ[ISA_VARIABLE] = forced
    return faults


def logits(folder: Path, options: dict[str, Any]) -> Tensor:
    """Return the logits of all tokens of the prompts, computed in one step."""
    engine_options = EngineOptions(backend="cpu", threads=1, **options)
    backend = choose_backend(engine_options, read_spec(Checkpoint.open(folder)))
    model = load_decoder(folder, dtype=engine_options.dtype, ops=backend.ops, formats=backend.formats)
    runner = backend.make_runner(model.decoder, KvCacheConfig(kv_groups(model.spec), 16, BLOCK_SIZE, model.dtype), 64)
    rows, block = [], 0
    for sequence, prompt in enumerate(PROMPTS):
        blocks = tuple(range(block, block := block + -(-len(prompt) // BLOCK_SIZE)))
        rows.append(RowPlan(sequence, 0, tuple(prompt), (blocks,), len(prompt)))
    return runner.run(StepPlan(tuple(rows))).logits.clone()


def refusal(shape: Shape, options: dict[str, str]) -> str | None:
    """Return how the refusal names the part of the model; None if the kernels take it."""
    if shape.head_dim > 512:
        return "layers.0.attention"
    wide = shape.intermediate_size > 131_072 and options.get("quantization") in ("int8", "int4")
    return "layers.0.mlp.down" if wide else None
