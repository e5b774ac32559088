"""Measuring this machine's kernels: matrix products by rows, attention, overhead of a step.

The fastest of some repeats counts: other work can only slow a kernel down.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from hasten.advise.machine import KernelRate
from hasten.checkpoints.hub import SHIPPED
from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.plan import RowPlan, Runner, StepPlan
from hasten.engine.kv_cache_sizing import kv_groups
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.workload import Workload, measure
from hasten.layers.formats.base import WeightFormat
from hasten.layers.linear import Linear
from hasten.layers.norm import Norm
from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from hasten.models.decoder import Decoder
from hasten.models.load import plan_decoder
from hasten.models.spec import DecoderSpec
from hasten.runners.backends.base import Backend
from hasten.runners.base import KvCacheConfig
from hasten.runners.step_timing import measure_step_seconds

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
OUTPUTS, INPUTS = 16_384, 1024  # of one matrix
MIN_WEIGHTS_BYTES = 128 << 20
CACHES = 4  # the weights are so many times larger than the largest cache, which then holds few of them
REPEATS = 5
MAX_WIDE_ROWS = 32
MAX_PRODUCT_FLOPS = 2e10  # of one repeat: large products stream few matrices, because memory does not limit them
BLOCK_SIZE = 16
# Attention in the shape of many models, around tiny matrices.
HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 16, 8, 128, 64
SEQUENCES, CONTEXT, PROMPT = 8, 1024, 512


@dataclasses.dataclass(frozen=True, slots=True)
class StepRates:
    attention: float  # FLOPs per second
    attention_bandwidth: float  # bytes of keys and values per second
    layer_overhead: float  # seconds
    step_overhead: float


def fastest(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def measure_products(backend: Backend, dtype: torch.dtype, cache_bytes: int | None = None) -> tuple[KernelRate, float]:
    """Return the rate of products with matrices from memory, and the bytes per second of one row."""
    generator = torch.Generator("cpu").manual_seed(0)
    weights = torch.randn(OUTPUTS, INPUTS, dtype=dtype, device="cpu", generator=generator)
    total = max(MIN_WEIGHTS_BYTES, CACHES * (largest_cache() if cache_bytes is None else cache_bytes))
    bits = backend.formats(dtype).projection(INPUTS, OUTPUTS).bits
    wide = _matrices(backend, weights, max(1, round(total / (OUTPUTS * INPUTS * bits / 8))))
    # Many rows of a wide matrix are an output that the system would map anew for each product, as no engine does.
    narrow = _matrices(backend, weights[: OUTPUTS // 4], 4)
    points = []
    for rows in ROWS:
        matrices = wide if rows <= MAX_WIDE_ROWS else narrow
        flops = 2.0 * rows * matrices[0].out_features * INPUTS
        used = matrices[: max(1, round(MAX_PRODUCT_FLOPS / flops))]
        inputs = torch.randn(rows, INPUTS, device="cpu", dtype=torch.float32, generator=generator)
        inputs = inputs if backend.has_own_thread_pool else inputs.to(dtype)

        def multiply(inputs: torch.Tensor = inputs, used: Sequence[WeightFormat] = used) -> None:
            for matrix in used:
                matrix.multiply(inputs, None)

        points.append((rows, len(used) * flops / fastest(multiply)))
    return KernelRate(tuple(points)), points[0][1] / (2 * 8 / bits)


def _matrices(backend: Backend, weights: torch.Tensor, count: int) -> list[WeightFormat]:
    outputs, inputs = weights.shape
    matrices: list[WeightFormat] = [backend.formats(weights.dtype).projection(inputs, outputs) for _ in range(count)]
    for matrix in matrices:
        matrix.load("weight", weights, slice(None), transposed=False)
    return matrices


def measure_steps(backend: Backend, dtype: torch.dtype, threads: int | None) -> StepRates:
    """Return the rates of attention, and the seconds that a layer and a step take beside their products."""
    tiny, deeper = (_runner(backend, dtype, layers, small=True) for layers in (1, 9))
    one_token = _plan(1, 1, 0)
    single, nine = (_step_seconds(runner, one_token, 20) for runner in (tiny, deeper))
    layer_overhead = max(0.0, (nine - single) / 8)
    num_layers = 4
    runner = _runner(backend, dtype, num_layers, small=False)
    for sequence in range(SEQUENCES):  # fills the KV cache, which would be pages of zeros
        runner.run(_plan(1, CONTEXT, 0, first=sequence))
    long, short = (_step_seconds(runner, plan) for plan in (_plan(1, PROMPT, 0), _plan(PROMPT // 16, 16, 0)))
    pairs = PROMPT * (PROMPT + 1) // 2 - PROMPT * 17 // 2
    attention = 4 * num_layers * HEADS * HEAD_DIM * pairs / max(long - short, 1e-6)
    late, early = (_step_seconds(runner, _plan(SEQUENCES, 1, start), 5) for start in (CONTEXT - 1, 0))
    block = backend.block_bytes(kv_groups(_spec(num_layers, small=False)), BLOCK_SIZE, dtype)
    kv_bytes = SEQUENCES * (CONTEXT // BLOCK_SIZE - 1) * block
    engine = _engine_overhead(backend, threads)
    return StepRates(attention, kv_bytes / max(late - early, 1e-6), layer_overhead, max(0.0, single - layer_overhead) + engine)


def _step_seconds(runner: Runner, plan: StepPlan, repeats: int = REPEATS) -> float:
    return fastest(lambda: runner.run(plan), repeats)


def _engine_overhead(backend: Backend, threads: int | None) -> float:
    """Return what the engine adds to a step of the runner: scheduling, sampling and text.

    Measured with the shipped model.
    """
    llm = LLM("demo", max_model_len=256, kv_cache_memory="16MiB", speculative_method="off", threads=threads)
    with llm:
        run = measure(llm, Workload(num_prompts=1, input_len=16, output_len=96), repeats=1)[0]
    with_engine = sorted(run.itl)[len(run.itl) // 4]
    plan = plan_decoder(Checkpoint.open(SHIPPED["demo"]), ops=backend.ops, formats=backend.formats)
    loaded = plan.load()
    kv = KvCacheConfig(kv_groups(loaded.spec), 16, BLOCK_SIZE, loaded.dtype)
    seconds = measure_step_seconds(backend.make_runner(loaded.decoder, kv, 64), kv, 2)
    return max(0.0, with_engine - seconds[1])


def largest_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of the largest cache of the first core, or 32 MiB where the system names none."""
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text(encoding="utf-8").strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return min(max(sizes, default=32 << 20), 512 << 20)


def _spec(num_layers: int, *, small: bool) -> DecoderSpec:
    heads, kv_heads, dim = (2, 2, 32) if small else (HEADS, KV_HEADS, HEAD_DIM)
    layer = LayerSpec(AttentionSpec(heads, kv_heads, dim, scale=dim**-0.5), MlpSpec(HIDDEN, "silu", gated=True))
    return DecoderSpec(
        model_type="llama",
        vocab_size=HIDDEN,
        hidden_size=HIDDEN,
        max_positions=2 * CONTEXT,
        layers=(layer,) * num_layers,
        norm=NormSpec("rms", 1e-6),
        tie_word_embeddings=True,
    )


def _runner(backend: Backend, dtype: torch.dtype, num_layers: int, *, small: bool) -> Runner:
    """Return the runner of a decoder with random weights."""
    spec = _spec(num_layers, small=small)
    decoder = Decoder(spec, backend.ops, dtype, formats=backend.formats(dtype))
    generator = torch.Generator("cpu").manual_seed(0)
    matrices: dict[int, nn.Module] = {}
    for module in decoder.modules():
        if isinstance(module, Linear) and id(module.format) not in matrices:
            shape = (module.format.out_features, module.format.in_features)
            weights = torch.randn(shape, dtype=dtype, device="cpu", generator=generator) / 8
            module.format.load("weight", weights, slice(None), transposed=False)
            matrices[id(module.format)] = module
        elif isinstance(module, Norm):
            nn.init.ones_(module.weight)
    blocks = SEQUENCES * CONTEXT // BLOCK_SIZE if not small else 8
    kv = KvCacheConfig(kv_groups(spec), blocks, BLOCK_SIZE, dtype)
    return backend.make_runner(decoder.eval(), kv, CONTEXT)


def _plan(sequences: int, tokens: int, start: int, first: int = 0) -> StepPlan:
    """Return a step of equal rows; each sequence has the blocks of a context of its own."""
    blocks = -(-(start + tokens) // BLOCK_SIZE)
    stride = CONTEXT // BLOCK_SIZE if sequences <= SEQUENCES else blocks
    return StepPlan(
        tuple(
            RowPlan(i, start, (1,) * tokens, (tuple(range((first + i) * stride, (first + i) * stride + blocks)),), 1)
            for i in range(sequences)
        )
    )


def arithmetic_options(arithmetic: str, kv_cache_dtype: str, threads: int | None) -> tuple[EngineOptions, torch.dtype]:
    """Return the options of an engine that computes in a dtype or in a quantization, and its dtype."""
    dense = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    quantization = None if arithmetic in dense else arithmetic
    return (
        EngineOptions(quantization=quantization, kv_cache_dtype=kv_cache_dtype, threads=threads),
        dense.get(arithmetic, torch.bfloat16),
    )
