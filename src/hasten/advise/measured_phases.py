"""``measure_phases``: prefill and decode on the engine, beside what was predicted."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from hasten.advise.explanation import Explanation
from hasten.advise.what_if import Settings
from hasten.core.errors import InvalidOption
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.workload import Workload, measure

TOLERANCE = 0.15
REPEATS = 5


@dataclass(frozen=True, slots=True)
class MeasuredPhase:
    name: str
    predicted: float  # seconds
    measured: float  # seconds, median of repeats

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted

    @property
    def is_off(self) -> bool:
        """Whether the prediction differs by more than 15 % of what was measured."""
        return abs(self.predicted - self.measured) > TOLERANCE * self.measured

    def as_dict(self) -> dict[str, Any]:
        return {"predicted": self.predicted, "measured": self.measured, "ratio": self.ratio, "off": self.is_off}


def measure_phases(
    model: str, settings: Settings, explained: Explanation, *, threads: int | None = None, repeats: int = REPEATS
) -> tuple[MeasuredPhase, ...]:
    """Return the time to the first token of all requests, and the time between two tokens of each.

    Raises ``InvalidOption`` for settings that the engine cannot run as predicted, and what ``LLM`` raises.
    """
    if not explained.machine.is_measured or not settings.cache or settings.speculation is not None:
        raise InvalidOption(
            "a measurement runs on this machine, with a KV cache and without speculation",
            got=explained.machine.name,
            remedy="Leave out --machine, --bandwidth, --flops, --no-cache and --num-speculative-tokens",
        )
    lengths, precision = settings.lengths, settings.precision
    workload = Workload(num_prompts=lengths.batch, input_len=lengths.prompt, output_len=lengths.output)
    with LLM(
        model,
        dtype=precision.dtype,
        quantization=precision.quantization,
        kv_cache_dtype=precision.kv_cache_dtype,
        threads=threads,
        max_num_seqs=max(64, lengths.batch),
        max_num_batched_tokens=max(2048, lengths.batch),
        max_model_len=lengths.prompt + lengths.output,
        speculative_method="off",
    ) as llm:
        runs = measure(llm, workload, repeats=repeats)
    prefill = statistics.median(max(run.ttft) for run in runs)
    phases = [MeasuredPhase("prefill", explained.ttft, prefill)]
    if lengths.output > 1:
        phases.append(MeasuredPhase("decode", explained.itl, statistics.median(itl for run in runs for itl in run.itl)))
    return tuple(phases)
