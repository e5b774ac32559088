"""The works: which prompts, how many tokens, and what each work must read and compute at least."""

import random
from dataclasses import dataclass

from engines.shapes import BYTES, Costs

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Demand:
    """The least that a turn of a work needs: operations (two per multiplication) and bytes from memory."""

    ops: float
    bytes: float

    def seconds(self, ops_per_second: float, bytes_per_second: float) -> float:
        return max(self.ops / ops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True, slots=True)
class Work:
    """``steps`` tokens are generated after the first of each of ``batch`` prompts of ``context`` tokens; mixed draws its own."""

    name: str
    kind: str  # prefill, decode, long or mixed
    words: str
    context: int = 0
    batch: int = 1
    steps: int = 0
    inputs: tuple[int, int] = (0, 0)  # of mixed: shortest and longest prompt
    outputs: tuple[int, int] = (0, 0)

    @property
    def room(self) -> int:
        """Tokens of the longest sequence, without the turns of a long context."""
        return max(self.context + self.steps, self.inputs[1] + self.outputs[1])

    def prompts(self, seed: int, turn: int, vocab_size: int) -> list[Ids]:
        """Other tokens for every turn, the same for every engine; no prefix is seen twice. The lengths never change."""
        draw = random.Random(f"{seed}/{self.name}/{turn}")
        margin = min(1000, vocab_size // 8)  # past the special tokens
        return [[draw.randrange(margin, vocab_size - margin) for _ in range(n)] for n in self.input_lengths(seed)]

    def input_lengths(self, seed: int) -> list[int]:
        draw = random.Random(f"{seed}/{self.name}/in")
        return [draw.randint(*self.inputs) if self.kind == "mixed" else self.context for _ in range(self.batch)]

    def output_lengths(self, seed: int) -> list[int]:
        draw = random.Random(f"{seed}/{self.name}/out")
        return [draw.randint(*self.outputs) for _ in range(self.batch)]

    def tokens(self, seed: int) -> int:
        """That the rate counts: read ones of prefill, generated ones of all others."""
        if self.kind == "prefill":
            return self.context
        return sum(self.output_lengths(seed)) if self.kind == "mixed" else self.batch * self.steps

    def all_tokens(self, seed: int) -> int | None:
        return sum(self.input_lengths(seed)) + self.tokens(seed) if self.kind == "mixed" else None

    def demand(self, costs: Costs, weights: str, kv: str | None, seed: int) -> Demand:
        all_weights = costs.layer_weights + costs.head_weights
        if self.kind == "prefill":
            return Demand(costs.prefill_ops(self.context), all_weights * BYTES[weights])
        if self.kind == "mixed":
            # Every answer's keys and values are left out: how many are read at a time is the engine's choice.
            inputs, outputs = self.input_lengths(seed), self.output_lengths(seed)
            ops = sum(costs.prefill_ops(n) for n in inputs) + 2.0 * all_weights * sum(outputs)
            return Demand(ops, max(outputs) * all_weights * BYTES[weights])
        context = self.batch * (self.context + self.steps / 2)
        ops = 2.0 * all_weights * self.batch + costs.attention_ops * context
        # Engines of quantised weights mostly keep keys and values in 8 bits unasked.
        return Demand(self.steps * ops, self.steps * costs.step_bytes(weights, round(context), "int8" if weights != "bf16" else kv))


def works(max_positions: int, quick: bool) -> dict[str, Work]:
    """By name. ``quick`` is for a look whether all engines run; its figures are no result."""
    long = min(2048 if quick else 8192, max_positions - 512)
    prompt, steps = (128, 8) if quick else (512, 16)
    listed = [
        Work("prefill-512", "prefill", f"prefill, {prompt} tokens", context=prompt),
        Work("decode-1", "decode", "decode, batch 1", context=32, steps=8 if quick else 48),
        Work("decode-8", "decode", "decode, batch 8", context=32, batch=8, steps=steps),
        Work("long", "long", f"decode, batch 1, after {long:,} tokens", context=long, steps=steps),
        Work(
            "mixed",
            "mixed",
            f"{8 if quick else 64} mixed requests",
            batch=8 if quick else 64,
            inputs=(16, 64) if quick else (16, 256),
            outputs=(4, 16) if quick else (16, 128),
        ),
    ]
    return {work.name: work for work in listed}
