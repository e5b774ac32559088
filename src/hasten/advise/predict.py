"""``predict_step``: the time of a step by the roofline model (Williams, Waterman and Patterson, 2009).

A module takes as long as its bytes or its arithmetic, whichever is longer; a step takes the sum of its modules and its overhead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hasten.advise.count import ModuleCount, count, windows
from hasten.advise.machine import KernelRate, MachineLimits
from hasten.advise.model_shape import ModelShape
from hasten.advise.work import Work, decode

Limit = Literal["memory", "arithmetic", "overhead"]

ATTENTION = ("scores", "weighted values")
TABLES = ("embedding", "norms")
MAX_BATCH = 1 << 14


@dataclass(frozen=True, slots=True)
class ModuleTime:
    name: str
    seconds: float
    limit: Limit


@dataclass(frozen=True, slots=True)
class StepTime:
    seconds: float
    limit: Limit  # which takes most of the time
    modules: tuple[ModuleTime, ...]
    overhead: float  # seconds


def predict_step(shape: ModelShape, work: Work, machine: MachineLimits) -> StepTime:
    """Return the time of one step."""
    assert work.steps == 1, work.steps
    counted = count(shape.spec, work, shape.storage)
    modules = tuple(_module_time(module, shape, work, machine) for module in counted.modules)
    overhead = machine.step_overhead + shape.spec.num_layers * machine.layer_overhead
    by_limit: dict[Limit, float] = {"memory": 0.0, "arithmetic": 0.0, "overhead": overhead}
    for module in modules:
        by_limit[module.limit] += module.seconds
    return StepTime(sum(by_limit.values()), max(by_limit, key=by_limit.__getitem__), modules, overhead)


def turning_batch(shape: ModelShape, context: int, machine: MachineLimits) -> int | None:
    """Return the smallest batch whose decode step is limited by arithmetic; None: none up to 16,384.

    Keys and values grow with the batch, so that long contexts stay limited by memory.
    """

    def is_arithmetic(batch: int) -> bool:
        return roofline_limit(shape, decode(batch, context, windows(shape.spec)), machine) == "arithmetic"

    high = 1
    while not is_arithmetic(high):
        high *= 2
        if high > MAX_BATCH:
            return None
    return _first(is_arithmetic, high // 2 + 1, high)


def roofline_limit(shape: ModelShape, work: Work, machine: MachineLimits) -> Limit:
    """Return what limits the modules of a step together, without its overhead."""
    total = {"memory": 0.0, "arithmetic": 0.0}
    for module in count(shape.spec, work, shape.storage).modules:
        one = _module_time(module, shape, work, machine)
        total[one.limit] += one.seconds
    return "arithmetic" if total["arithmetic"] > total["memory"] else "memory"


def expected_tokens(num_draft_tokens: int, acceptance: float) -> float:
    """Return the tokens that a step yields: one, and the drafts up to the first rejected one.

    Each draft token is accepted with probability ``acceptance`` (Leviathan et al., 2023, arXiv 2211.17192, equation 1).
    """
    return sum(acceptance**i for i in range(num_draft_tokens + 1))


def _module_time(module: ModuleCount, shape: ModelShape, work: Work, machine: MachineLimits) -> ModuleTime:
    """Measured rates include what activations cost, since kernels pass them on in caches."""
    activations = 0.0 if machine.is_measured else module.input_bytes + module.output_bytes
    memory = (module.weight_bytes + activations) / machine.bandwidth
    memory += (module.kv_read + module.kv_written) / (machine.attention_bandwidth or machine.bandwidth)
    if module.name in TABLES:
        return ModuleTime(module.name, memory, "memory")
    rate = _rate(module, shape, machine)
    rows = work.logit_rows if module.name == "vocabulary" else work.tokens
    seconds = max(memory, module.flops / rate.at(max(rows, 1)))
    return ModuleTime(module.name, seconds, "memory" if memory >= module.flops / rate.peak else "arithmetic")


def _rate(module: ModuleCount, shape: ModelShape, machine: MachineLimits) -> KernelRate:
    if module.name not in ATTENTION:
        return machine.rate(shape.arithmetic)
    dense = machine.rate(str(shape.dtype).removeprefix("torch."))
    return dense if machine.attention is None else KernelRate(((1, machine.attention),))


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the first number from ``low`` to ``high`` for which it holds; it holds for ``high``."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
