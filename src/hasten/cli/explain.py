"""``hasten explain``: what a model costs on a machine, counted, predicted and measured."""

from __future__ import annotations

import dataclasses
import json as encoder
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.engine_options import HELP, Debug, Json, model_name
from hasten.cli.explain_tables import comparison_table, lines_of, measured_table, module_tables
from hasten.cli.report import print_table
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.advise.explanation import Explanation
    from hasten.advise.machine import MachineLimits
    from hasten.advise.measured_phases import MeasuredPhase
    from hasten.advise.model_shape import ModelShape
    from hasten.advise.what_if import Settings

EXPLAINED_MODEL = "A folder, a GGUF file, a config.json, a model of the hub that is in the cache, or 'demo'."

Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CHANGE...]",
        help="With --compare: settings side by side, such as int8 int4 kv-int8 batch=8 speculation=4 no-cache h100 int4+batch=8.",
    ),
]
Batch = Annotated[int, typer.Option("--batch", metavar="INTEGER", help="Requests that run together.")]
Prompt = Annotated[int, typer.Option("--prompt", metavar="INTEGER", help="Tokens of each prompt.")]
Output = Annotated[int, typer.Option("--output", metavar="INTEGER", help="Tokens of each output.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TEXT", help=HELP["dtype"])]
Quantization = Annotated[
    str | None, typer.Option("--quantization", metavar="TEXT", help=f"{HELP['quantization']} On another machine also fp8.")
]
KvCacheDtype = Annotated[str, typer.Option("--kv-cache-dtype", metavar="TEXT", help=HELP["kv_cache_dtype"])]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep keys and values, or compute them again for each token.")]
Drafts = Annotated[
    int | None,
    typer.Option("--num-speculative-tokens", metavar="INTEGER", help="Draft tokens per step; to propose them costs nothing."),
]
Acceptance = Annotated[float, typer.Option("--acceptance", metavar="NUMBER", help="Probability that a draft token is accepted.")]
Machine = Annotated[
    str | None,
    typer.Option("--machine", metavar="NAME", help="A known machine, such as h100; this one, measured, if left out."),
]
Bandwidth = Annotated[
    str | None,
    typer.Option("--bandwidth", metavar="RATE", help="Of the memory, such as 4.3TB/s. With --flops or --machine."),
]
Flops = Annotated[
    str | None,
    typer.Option("--flops", metavar="RATE", help="Of matrix products, such as 790T. With --bandwidth or --machine."),
]
KvCacheMemory = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-memory", metavar="SIZE", help="Memory of the KV cache, such as 4GiB; a quarter of the rest if left out."
    ),
]
MaxNumSeqs = Annotated[int, typer.Option("--max-num-seqs", metavar="INTEGER", help=HELP["max_num_seqs"])]
Threads = Annotated[int | None, typer.Option("--threads", metavar="INTEGER", help=HELP["threads"])]
Remeasure = Annotated[bool, typer.Option("--remeasure", help="Measure the limits of this machine again.")]
Measure = Annotated[bool, typer.Option("--measure", help="Run prefill and decode, and show predicted beside measured.")]
Compare = Annotated[bool, typer.Option("--compare", help="Show the changes that follow side by side.")]
Svg = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write the roofline with the phases as points.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the decoder drawn and its shapes.")]


def explain(
    name: Annotated[str | None, typer.Argument(metavar="MODEL", help=EXPLAINED_MODEL)] = None,
    changes: Changes = None,
    batch: Batch = 1,
    prompt: Prompt = 512,
    output: Output = 128,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    kv_cache_dtype: KvCacheDtype = "auto",
    cache: Cache = True,
    num_speculative_tokens: Drafts = None,
    acceptance: Acceptance = 0.7,
    machine: Machine = None,
    bandwidth: Bandwidth = None,
    flops: Flops = None,
    kv_cache_memory: KvCacheMemory = None,
    max_num_seqs: MaxNumSeqs = 64,
    threads: Threads = None,
    remeasure: Remeasure = False,
    measure: Measure = False,
    compare: Compare = False,
    svg: Svg = None,
    html: Html = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count what a model computes and reads, and predict its speed and memory on a machine.

    No weight is read, but with --measure.
    """
    from hasten.advise.explanation import Speculation
    from hasten.advise.model_shape import Precision
    from hasten.advise.what_if import Settings
    from hasten.advise.work import Lengths

    model = model_name(name, None)
    _check_changes(changes, compare)
    drafts = num_speculative_tokens
    speculation = Speculation(tokens=1 if drafts is None else drafts, acceptance=acceptance)  # checks both numbers
    settings = Settings(
        precision=Precision(dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype),
        lengths=Lengths(batch=batch, prompt=prompt, output=output),
        cache=cache,
        speculation=None if drafts is None else speculation,
        acceptance=acceptance,
    )
    run = _Run(model, _MachineChoice(machine, bandwidth, flops, threads, remeasure), kv_cache_memory, max_num_seqs)
    explained = run.explain(settings)
    variants = run.compare(settings, changes or ())
    _print(explained, variants, run.measure(settings, explained) if measure else (), json)
    _write_drawings({"as given": explained, **variants}, svg, html)


def _check_changes(changes: Sequence[str] | None, compare: bool) -> None:
    """Raise ``InvalidOption`` for changes without ``--compare``, and the reverse."""
    if bool(changes) != compare:
        got = " ".join(changes) if changes else "--compare alone"
        raise InvalidOption("--compare and changes need each other", got=got, remedy="Write, for instance: --compare int8 batch=8")


def _print(explained: Explanation, variants: Mapping[str, Explanation], measured: Sequence[MeasuredPhase], json: bool) -> None:
    """Print JSON, or tables and a warning for each phase whose prediction is off."""
    if json:
        report = explained.as_dict()
        if variants:
            report["compare"] = {text: one.as_dict() for text, one in variants.items()}
        if measured:
            report["measured"] = {phase.name: phase.as_dict() for phase in measured}
        print(encoder.dumps(report))
        return
    print("\n".join(f"{title:<14}{text}" for title, text in lines_of(explained)))
    for title, columns, rows in [*module_tables(explained), *comparison_table(explained, variants), *measured_table(measured)]:
        print(f"\n{title}")
        print_table(columns, rows)
    for phase in measured:
        if phase.is_off:
            print(f"warning: {phase.name} took {phase.ratio:.2f} times the predicted time", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _MachineChoice:
    """The options that say which machine is meant."""

    name: str | None
    bandwidth: str | None
    flops: str | None
    threads: int | None
    remeasure: bool

    @property
    def is_here(self) -> bool:
        return self.name is None and self.bandwidth is None and self.flops is None

    def given(self) -> MachineLimits:
        """Return the limits that the options give. Raises ``InvalidOption``."""
        from hasten.advise.known_machines import known_machine
        from hasten.advise.machine import KernelRate, MachineLimits, parse_rate

        bandwidth = None if self.bandwidth is None else parse_rate(self.bandwidth, "--bandwidth", "B/s")
        flops = None if self.flops is None else parse_rate(self.flops, "--flops", "FLOPS")
        rates = None if flops is None else {"bfloat16": KernelRate(((1, flops),))}
        if self.name is not None:
            known = known_machine(self.name)
            return dataclasses.replace(known, bandwidth=bandwidth or known.bandwidth, rates=rates or known.rates)
        if bandwidth is None or rates is None:
            raise InvalidOption(
                "--bandwidth and --flops need each other", got=self.bandwidth or self.flops, remedy="Give both, or a --machine"
            )
        return MachineLimits(name="the given machine", bandwidth=bandwidth, rates=rates)

    def measured(self, shape: ModelShape) -> MachineLimits:
        """Return the limits of this machine for the model's arithmetic."""
        from hasten.advise.measured_machine import measured_machine

        kv_dtype = "int8" if shape.has_int8_kv else "auto"
        return measured_machine([shape.arithmetic], kv_cache_dtype=kv_dtype, threads=self.threads, fresh=self.remeasure)


@dataclasses.dataclass(frozen=True)
class _Run:
    model: str
    choice: _MachineChoice
    kv_cache_memory: str | None
    max_num_seqs: int

    def explain(self, settings: Settings) -> Explanation:
        from hasten.advise.memory import EngineSizes
        from hasten.advise.what_if import explain_settings
        from hasten.core.engine_options import EngineOptions
        from hasten.core.memory_size import parse_bytes

        memory = None if self.kv_cache_memory is None else parse_bytes(self.kv_cache_memory, "--kv-cache-memory")
        is_here = self.choice.is_here
        given = None if is_here else self.choice.given()
        sizes = EngineSizes(max_num_seqs=EngineOptions(max_num_seqs=self.max_num_seqs).max_num_seqs)
        return explain_settings(
            self.model,
            settings,
            lambda shape: self.choice.measured(shape) if given is None else given,
            is_here=is_here,
            sizes=sizes,
            kv_memory=memory,
        )

    def compare(self, settings: Settings, changes: Sequence[str]) -> dict[str, Explanation]:
        from hasten.advise.what_if import changed

        all_settings = {text: changed(settings, text) for text in changes}  # a misspelt one is an error before the work
        return {text: self.explain(one) for text, one in all_settings.items()}

    def measure(self, settings: Settings, explained: Explanation) -> tuple[MeasuredPhase, ...]:
        from hasten.advise.measured_phases import measure_phases

        return measure_phases(self.model, settings, explained, threads=self.choice.threads)


def _write_drawings(explanations: dict[str, Explanation], svg: Path | None, html: Path | None) -> None:
    """Write the files that are asked for. Raises ``OSError``."""
    if svg is not None:
        from hasten.advise.roofline_svg import draw_roofline

        svg.write_text(draw_roofline(explanations), encoding="utf-8")
    if html is not None:
        from hasten.advise.html_page import write_page

        html.write_text(write_page(explanations), encoding="utf-8")
