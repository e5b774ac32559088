"""The lines and tables of ``hasten explain``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hasten.advise.quantities import rate, scaled, seconds

if TYPE_CHECKING:
    from hasten.advise.explanation import Explanation, Phase
    from hasten.advise.measured_phases import MeasuredPhase

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, columns, rows


def lines_of(explained: Explanation) -> Iterator[tuple[str, str]]:
    """Yield titles and texts of what is not a table."""
    spec, lengths, machine, memory = explained.shape.spec, explained.lengths, explained.machine, explained.memory
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    sizes = (
        f"L = {spec.num_layers}, h = {spec.hidden_size:,}, H = {attention.num_heads}, K = {attention.num_kv_heads}, "
        f"d = {attention.head_dim}, f = {mlp.intermediate_size:,}, V = {spec.vocab_size:,}"
    )
    middle = lengths.prompt + (lengths.output - 1) // 2
    yield "model", f"{explained.shape.name}: {spec.model_type}, weights in {explained.shape.storage.name}"
    yield "sizes", sizes
    yield "work", f"b = {lengths.batch}, s = {lengths.prompt:,} prompt tokens, o = {lengths.output:,} output tokens, c = {middle:,}"
    origin = "measured" if machine.is_measured else "published or given"
    peak = machine.rate(explained.shape.arithmetic).peak
    yield "machine", f"{machine.name}: {scaled(machine.bandwidth, 'B/s')}, {scaled(peak, 'FLOP/s')} ({origin})"
    yield (
        "memory",
        (
            f"weights {scaled(memory.weights, 'B')}; KV cache {scaled(memory.kv_per_token, 'B')} per token, "
            f"{scaled(memory.kv_per_request, 'B')} per request; activations {scaled(memory.activations, 'B')}"
        ),
    )
    yield "KV cache", f"saves {explained.cache_saving:.1%} of the multiply-adds of the request"
    yield "turns", _turning(explained)
    if machine.memory is not None and machine.memory < memory.weights:
        yield "fits", f"the weights are larger than the {scaled(machine.memory, 'B')} of memory"
    elif explained.budget is not None:
        budget = explained.budget
        limit = "" if budget.is_limited_by_memory else ", the most that --max-num-seqs permits"
        yield (
            "fits",
            (
                f"{budget.requests:,} such requests at once{limit}, or one context of {budget.longest_context:,} tokens, "
                f"in {scaled(budget.memory, 'B')} of KV cache"
            ),
        )
    yield "TTFT", seconds(explained.ttft)
    tokens = "" if explained.tokens_per_step == 1 else f" ({explained.tokens_per_step:.2f} tokens per step)"
    yield "ITL", f"{seconds(explained.itl)}{tokens}, {rate(explained.tokens_per_second)} output tokens/s"
    yield "request", seconds(explained.request_seconds)


def module_tables(explained: Explanation) -> list[Table]:
    """Return the modules of prefill and of a decode step, and the sums of all phases."""
    phases = [_module_table(phase) for phase in explained.phases if phase.time is not None]
    columns = ("PHASE", "STEPS", "TOKENS", "FLOPS", "BYTES", "FLOPS/BYTE", "TIME", "LIMIT")
    return [*phases, ("phases", columns, [_phase_row(phase) for phase in explained.phases])]


def comparison_table(explained: Explanation, variants: Mapping[str, Explanation]) -> list[Table]:
    if not variants:
        return []
    columns = ("CHANGE", "WEIGHTS", "KV PER REQUEST", "TTFT", "ITL", "TOKENS/S", "LIMIT OF DECODE", "REQUESTS AT ONCE")
    return [("compared", columns, [_variant_row(name, one) for name, one in {"as given": explained, **variants}.items()])]


def measured_table(phases: Sequence[MeasuredPhase]) -> list[Table]:
    if not phases:
        return []
    rows: list[tuple[str, ...]] = [
        (phase.name, seconds(phase.predicted), seconds(phase.measured), f"{phase.ratio:.2f}", _remark(phase)) for phase in phases
    ]
    return [("measured", ("PHASE", "PREDICTED", "MEASURED", "RATIO", ""), rows)]


def _remark(phase: MeasuredPhase) -> str:
    return "off by more than 15 %" if phase.is_off else ""


def _turning(explained: Explanation) -> str:
    if explained.turning_batch is None:
        return "decode is limited by memory at every batch of this context"
    if explained.turning_batch == 1:
        return "decode is limited by arithmetic at every batch of this context"
    return f"decode is limited by memory below a batch of {explained.turning_batch:,}, and by arithmetic from there on"


def _module_table(phase: Phase) -> Table:
    assert phase.time is not None
    rows: list[tuple[str, ...]] = []
    for module, time in zip(phase.count.modules, phase.time.modules, strict=True):
        has_product = bool(module.formula.terms)
        rows.append(
            (
                module.name,
                f"{module.formula.symbols()} = {module.formula.numbers()}" if has_product else "",
                scaled(module.multiply_adds) if has_product else "",
                scaled(module.weight_bytes, "B") if module.weight_bytes else "",
                scaled(module.kv_read + module.kv_written, "B") if module.kv_read + module.kv_written else "",
                seconds(time.seconds),
                time.limit,
            )
        )
    if phase.time.overhead:
        rows.append(("overhead", "", "", "", "", seconds(phase.time.overhead), "overhead"))
    total = phase.count.total
    kv = scaled(total.kv_read + total.kv_written, "B")
    sums = (
        "total",
        "",
        scaled(total.multiply_adds),
        scaled(total.weight_bytes, "B"),
        kv,
        seconds(phase.time.seconds),
        phase.time.limit,
    )
    title = "prefill" if phase.name == "prefill" else "one step of decode"
    return title, ("MODULE", "FORMULA", "MULTIPLY-ADDS", "WEIGHTS", "KEYS, VALUES", "TIME", "LIMIT"), [*rows, sums]


def _phase_row(phase: Phase) -> tuple[str, ...]:
    total, time = phase.count.total, phase.time
    return (
        phase.name,
        f"{phase.work.steps:,}",
        f"{phase.work.tokens:,}",
        scaled(total.flops),
        scaled(total.bytes, "B"),
        f"{total.intensity:.3g}",
        "" if time is None else seconds(time.seconds),
        "" if time is None else time.limit,
    )


def _variant_row(name: str, explained: Explanation) -> tuple[str, ...]:
    time = explained.decode.time
    return (
        name,
        scaled(explained.memory.weights, "B"),
        scaled(explained.memory.kv_per_request, "B"),
        seconds(explained.ttft),
        seconds(explained.itl),
        rate(explained.tokens_per_second),
        "" if time is None else time.limit,
        "" if explained.budget is None else f"{explained.budget.requests:,}",
    )
