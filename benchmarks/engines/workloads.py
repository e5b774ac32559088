"""The workloads: their prompts and lengths, and the minimum that each must read and compute."""

import random
from dataclasses import dataclass

from engines.shapes import Costs

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Demand:
    """The minimum that one repeat needs: operations (two per multiply-add) and bytes read from memory."""

    ops: float
    bytes: float

    def seconds(self, ops_per_second: float, bytes_per_second: float) -> float:
        return max(self.ops / ops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True, slots=True)
class Workload:
    """``batch`` prompts of ``context`` tokens, and ``steps`` tokens after each first one.

    Mixed requests draw their lengths from ``inputs`` and ``outputs``.
    """

    name: str
    kind: str  # prefill, decode, long or mixed
    title: str
    context: int = 0
    batch: int = 1
    steps: int = 0
    inputs: tuple[int, int] = (0, 0)  # mixed: shortest and longest prompt
    outputs: tuple[int, int] = (0, 0)

    @property
    def max_len(self) -> int:
        """Tokens of the longest sequence in one repeat."""
        return max(self.context + self.steps, self.inputs[1] + self.outputs[1])

    def prompts(self, seed: int, repeat: int, vocab_size: int) -> list[Ids]:
        """Return the prompts of one repeat, which are the same for every engine.

        Tokens differ between repeats, and lengths do not.
        """
        rng = random.Random(f"{seed}/{self.name}/{repeat}")
        margin = min(1000, vocab_size // 8)  # skips the special tokens
        return [[rng.randrange(margin, vocab_size - margin) for _ in range(n)] for n in self.input_lengths(seed)]

    def input_lengths(self, seed: int) -> list[int]:
        rng = random.Random(f"{seed}/{self.name}/in")
        return [rng.randint(*self.inputs) if self.kind == "mixed" else self.context for _ in range(self.batch)]

    def output_lengths(self, seed: int) -> list[int]:
        rng = random.Random(f"{seed}/{self.name}/out")
        return [rng.randint(*self.outputs) for _ in range(self.batch)]

    def tokens(self, seed: int) -> int:
        """Return the tokens that the rate counts: those of the prompt for prefill, else generated tokens."""
        if self.kind == "prefill":
            return self.context
        return sum(self.output_lengths(seed)) if self.kind == "mixed" else self.batch * self.steps

    def all_tokens(self, seed: int) -> int | None:
        return sum(self.input_lengths(seed)) + self.tokens(seed) if self.kind == "mixed" else None

    def demand(self, costs: Costs, weights: str, kv: str | None, seed: int, lm_head: str | None = None) -> Demand:
        """Return what one repeat needs with these weights; ``lm_head`` None: stored like the layers."""
        all_weights = costs.layer_weights + costs.head_weights
        weight_bytes = costs.weight_bytes(weights, lm_head or weights)
        if self.kind == "prefill":
            return Demand(costs.prefill_ops(self.context), weight_bytes)
        if self.kind == "mixed":
            # The KV cache of outputs is not counted, because the engine chooses how many sequences run together.
            inputs, outputs = self.input_lengths(seed), self.output_lengths(seed)
            ops = sum(costs.prefill_ops(n) for n in inputs) + 2.0 * all_weights * sum(outputs)
            return Demand(ops, max(outputs) * weight_bytes)
        context = self.batch * (self.context + self.steps / 2)
        ops = 2.0 * all_weights * self.batch + costs.attention_ops * context
        # Most engines with integer weights have an 8-bit KV cache by default.
        cache_bytes = costs.cache_bytes(round(context), kv if weights in ("bf16", "fp8") else "int8")
        return Demand(self.steps * ops, self.steps * (weight_bytes + cache_bytes))


def workloads(max_positions: int, quick: bool) -> dict[str, Workload]:
    """Return the workloads by name. ``quick`` shortens them, to check only that all engines run."""
    long = min(2048 if quick else 8192, max_positions - 512)
    prompt, steps = (128, 8) if quick else (512, 16)
    selected = [
        Workload("prefill-512", "prefill", f"prefill, {prompt} tokens", context=prompt),
        Workload("decode-1", "decode", "decode, batch 1", context=32, steps=8 if quick else 48),
        Workload("decode-8", "decode", "decode, batch 8", context=32, batch=8, steps=steps),
        Workload("long", "long", f"decode, batch 1, after {long:,} tokens", context=long, steps=steps),
        Workload(
            "mixed",
            "mixed",
            f"{8 if quick else 64} mixed requests",
            batch=8 if quick else 64,
            inputs=(16, 64) if quick else (16, 256),
            outputs=(4, 16) if quick else (16, 128),
        ),
    ]
    return {workload.name: workload for workload in selected}
