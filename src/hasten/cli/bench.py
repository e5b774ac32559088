"""``hasten bench``: the latency and the throughput of a model on this machine."""

from __future__ import annotations

import json as encoder
import sys
from typing import Annotated

import typer

from hasten.bench.report import make_report, summary_rows
from hasten.cli.engine_options import BENCHMARK_ENGINE, Debug, Json, ModelArgument, ModelOption, load_llm, model_name
from hasten.cli.options import OptionValues, with_options
from hasten.cli.report import print_table
from hasten.entrypoints.workload import Workload, measure

bench = typer.Typer(help="Measure latency or throughput.", no_args_is_help=True, rich_markup_mode=None)

InputLen = Annotated[int, typer.Option("--input-len", help="Tokens of each prompt (random ids).")]
OutputLen = Annotated[int, typer.Option("--output-len", help="Tokens of each output.")]
SharedLen = Annotated[int, typer.Option("--shared-len", help="Tokens of the prefix that all prompts share.")]
Repeats = Annotated[int, typer.Option("--repeats", help="Measured runs; the report has their median and spread.")]
Warmup = Annotated[int, typer.Option("--warmup", help="Runs before the measured ones.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the random prompts.")]


@bench.command()
@with_options(BENCHMARK_ENGINE)
def latency(
    name: ModelArgument = None,
    model: ModelOption = None,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    shared_len: SharedLen = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Concurrent requests.")] = 1,
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
    *,
    engine: OptionValues,
) -> None:
    """Time one batch of equal requests, from arrival to the last token."""
    model = model_name(name, model)
    workload = Workload(num_prompts=batch_size, input_len=input_len, output_len=output_len, shared_len=shared_len, seed=seed)
    _run_benchmark("latency", model, engine, workload, repeats, warmup, json)


@bench.command()
@with_options(BENCHMARK_ENGINE)
def throughput(
    name: ModelArgument = None,
    model: ModelOption = None,
    num_prompts: Annotated[int, typer.Option("--num-prompts", help="Requests, which all arrive at the start.")] = 64,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    shared_len: SharedLen = 0,
    repeats: Repeats = 3,
    warmup: Warmup = 1,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
    *,
    engine: OptionValues,
) -> None:
    """Run many requests as fast as the engine can."""
    model = model_name(name, model)
    workload = Workload(num_prompts=num_prompts, input_len=input_len, output_len=output_len, shared_len=shared_len, seed=seed)
    _run_benchmark("throughput", model, engine, workload, repeats, warmup, json)


def _run_benchmark(kind: str, model: str, engine: OptionValues, workload: Workload, repeats: int, warmup: int, json: bool) -> None:
    # Outputs of random prompts soon repeat themselves, so drafts would be accepted more often than on real text.
    llm = load_llm(model, {"speculative_method": "off", **engine})

    def show_progress(num_runs: int) -> None:
        print(f"run {num_runs} of {warmup + repeats}", file=sys.stderr)

    runs = measure(llm, workload, repeats=repeats, warmup=warmup, progress=show_progress)
    report = make_report(kind, llm.describe(), workload, runs)
    if json:
        print(encoder.dumps(report))
        return
    description = report["engine"]
    print(f"{model}, {description['dtype']}, {description['threads']} threads, {description['kernels']}", file=sys.stderr)
    size = f"{workload.num_prompts} requests with {workload.input_len} prompt tokens and {workload.output_len} output tokens"
    print(f"{size}; {report['quality']}", file=sys.stderr)
    print_table((kind, "MEDIAN", "SPREAD OR PERCENTILES"), summary_rows(report))
