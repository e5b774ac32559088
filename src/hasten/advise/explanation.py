"""``explain``: counts, prediction and memory of a model on a machine, as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from hasten.advise.count import Count, cache_saving, count, windows
from hasten.advise.machine import MachineLimits
from hasten.advise.memory import EngineSizes, KvBudget, MemoryUse, kv_budget, memory_use
from hasten.advise.model_shape import ModelShape
from hasten.advise.predict import StepTime, expected_tokens, predict_step, turning_batch
from hasten.advise.work import Lengths, Work, decode, prefill, request
from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Range
from hasten.engine.kv_cache_sizing import DEFAULT_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Draft tokens per step that cost nothing to propose, as those of the n-gram drafters nearly do."""

    tokens: Annotated[int, Range(1, 256)]
    acceptance: Annotated[float, Range(0, 1)] = 0.7  # probability of each draft token

    def __post_init__(self) -> None:
        check_fields(self, "number", InvalidOption)


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of step, or a complete request."""

    name: str
    work: Work
    count: Count
    time: StepTime | None  # None: many steps

    @property
    def flops_per_second(self) -> float:
        return 0.0 if self.time is None else self.count.total.flops / self.time.seconds


@dataclass(frozen=True, slots=True)
class Explanation:
    shape: ModelShape
    lengths: Lengths
    machine: MachineLimits
    prefill: Phase
    decode: Phase  # of a step in the middle of the output
    request: Phase
    cache_saving: float  # share of the multiply-adds of the request
    memory: MemoryUse
    budget: KvBudget | None  # None: the machine's memory is not known
    turning_batch: int | None
    tokens_per_step: float  # of each sequence

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.prefill, self.decode, self.request

    @property
    def ttft(self) -> float:
        return _seconds(self.prefill)

    @property
    def itl(self) -> float:
        return _seconds(self.decode) / self.tokens_per_step

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all sequences while they decode."""
        return self.lengths.batch / self.itl

    @property
    def request_seconds(self) -> float:
        return self.ttft + (self.lengths.output - 1) * self.itl

    def as_dict(self) -> dict[str, Any]:
        machine = self.machine
        return {
            "model": self.shape.name,
            "family": self.shape.spec.model_type,
            "weights": self.shape.storage.name,
            "dtype": str(self.shape.dtype).removeprefix("torch."),
            "lengths": dataclasses.asdict(self.lengths),
            "machine": {
                "name": machine.name,
                "bytes_per_second": machine.bandwidth,
                "flops_per_second": machine.rate(self.shape.arithmetic).peak,
                "measured": machine.is_measured,
            },
            "phases": {phase.name: _phase_dict(phase) for phase in self.phases},
            "kv_cache_saves": self.cache_saving,
            "ttft": self.ttft,
            "itl": self.itl,
            "output_tokens_per_second": self.tokens_per_second,
            "request_seconds": self.request_seconds,
            "tokens_per_step": self.tokens_per_step,
            "turning_batch": self.turning_batch,
            "memory": dataclasses.asdict(self.memory),
            "kv_budget": None if self.budget is None else dataclasses.asdict(self.budget),
        }


def explain(
    shape: ModelShape,
    lengths: Lengths,
    machine: MachineLimits,
    *,
    cache: bool = True,
    speculation: Speculation | None = None,
    sizes: EngineSizes | None = None,
    kv_memory: int | None = None,
) -> Explanation:
    """Return what ``lengths`` requests of the model cost on the machine.

    Without ``cache``, each output token computes all before it again. ``kv_memory`` None: a quarter of the memory that the weights
    leave, as the engine takes. Raises ``InvalidOption`` for requests longer than the model's context.
    """
    longest = shape.spec.max_positions
    if lengths.prompt + lengths.output > longest:
        raise InvalidOption(
            "prompt and output are longer than the model's context",
            got=f"{lengths.prompt} + {lengths.output} tokens",
            allowed=f"up to {longest}",
        )
    own, sizes = windows(shape.spec), sizes or EngineSizes()
    context = lengths.prompt + (lengths.output - 1) // 2
    drafted = 0 if speculation is None else speculation.tokens
    one_step = decode(lengths.batch, context, own, tokens=1 + drafted) if cache else prefill(lengths.batch, context + 1, own)
    cached, uncached = (request(lengths, own, cache=kept) for kept in (True, False))
    use = memory_use(shape, lengths, sizes)
    if kv_memory is None and machine.memory is not None:
        kv_memory = int(max(0, machine.memory - use.weights) * DEFAULT_SHARE)
    return Explanation(
        shape=shape,
        lengths=lengths,
        machine=machine,
        prefill=_phase("prefill", shape, prefill(lengths.batch, lengths.prompt, own), machine),
        decode=_phase("decode", shape, one_step, machine),
        request=_phase("request", shape, cached if cache else uncached, machine),
        cache_saving=cache_saving(shape.spec, cached, uncached, shape.storage),
        memory=use,
        budget=None if kv_memory is None else kv_budget(shape, lengths, sizes, kv_memory),
        turning_batch=turning_batch(shape, context, machine),
        tokens_per_step=1.0 if speculation is None else expected_tokens(drafted, speculation.acceptance),
    )


def _phase(name: str, shape: ModelShape, work: Work, machine: MachineLimits) -> Phase:
    time = predict_step(shape, work, machine) if work.steps == 1 and name != "request" else None
    return Phase(name, work, count(shape.spec, work, shape.storage), time)


def _seconds(phase: Phase) -> float:
    assert phase.time is not None, phase.name
    return phase.time.seconds


def _phase_dict(phase: Phase) -> dict[str, Any]:
    total = phase.count.total
    modules: dict[str, Any] = {
        module.name: {
            "multiply_adds": module.multiply_adds,
            "formula": module.formula.symbols(),
            "numbers": module.formula.numbers(),
            "weight_bytes": module.weight_bytes,
            "kv_bytes_read": module.kv_read,
            "kv_bytes_written": module.kv_written,
            "activation_bytes": module.input_bytes + module.output_bytes,
        }
        for module in phase.count.modules
    }
    values: dict[str, Any] = {
        "steps": phase.work.steps,
        "tokens": phase.work.tokens,
        "multiply_adds": total.multiply_adds,
        "flops": total.flops,
        "bytes": total.bytes,
        "flops_per_byte": total.intensity,
        "modules": modules,
    }
    if phase.time is not None:
        values |= {"seconds": phase.time.seconds, "limit": phase.time.limit, "overhead_seconds": phase.time.overhead}
        for time in phase.time.modules:
            modules[time.name] |= {"seconds": time.seconds, "limit": time.limit}
    return values
