"""``hasten bench``: how fast a model answers (latency) and how much it answers in all (throughput) on this machine."""

from __future__ import annotations

import json as encoder
import sys
from typing import Annotated

import typer

from hasten.cli.engine_options import ENGINE, Debug, Json, ModelArgument, ModelOption, load, one_model
from hasten.cli.options import Given, with_options
from hasten.cli.print_table import print_table

bench = typer.Typer(help="ConfidenceMeasure latency or throughput.", no_args_is_help=True, rich_markup_mode=None)

InputLen = Annotated[int, typer.Option("--input-len", help="Tokens of each prompt (random ids).")]
OutputLen = Annotated[int, typer.Option("--output-len", help="Tokens of each answer.")]
SharedLen = Annotated[int, typer.Option("--shared-len", help="Tokens at the beginning that all prompts have in common.")]
Repeats = Annotated[int, typer.Option("--repeats", help="Runs that count; the report has their median and spread.")]
Warmup = Annotated[int, typer.Option("--warmup", help="Runs before those that count.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the random prompts.")]


@bench.command()
@with_options(ENGINE)
def latency(
    name: ModelArgument = None,
    model: ModelOption = None,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    shared_len: SharedLen = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Requests at the same time.")] = 1,
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
    *,
    engine: Given,
) -> None:
    """Time one batch of equal requests, from arrival to the last token."""
    sizes = {"num_prompts": batch_size, "input_len": input_len, "output_len": output_len, "shared_len": shared_len, "seed": seed}
    _bench("latency", one_model(name, model), engine, sizes, repeats, warmup, json)


@bench.command()
@with_options(ENGINE)
def throughput(
    name: ModelArgument = None,
    model: ModelOption = None,
    num_prompts: Annotated[int, typer.Option("--num-prompts", help="Requests, all there from the start.")] = 64,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    shared_len: SharedLen = 0,
    repeats: Repeats = 3,
    warmup: Warmup = 1,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
    *,
    engine: Given,
) -> None:
    """Run many requests as fast as the engine can."""
    sizes = {"num_prompts": num_prompts, "input_len": input_len, "output_len": output_len, "shared_len": shared_len, "seed": seed}
    _bench("throughput", one_model(name, model), engine, sizes, repeats, warmup, json)


def _bench(kind: str, model: str, engine: Given, sizes: dict[str, int], repeats: int, warmup: int, json: bool) -> None:
    from hasten.bench.measure import measure
    from hasten.bench.report import lines, make_report
    from hasten.bench.workload import Workload

    workload = Workload(**sizes)
    # What random prompts are answered with goes in circles sooner than any user's text, and would be guessed too well.
    llm = load(model, {"speculative_method": "off", **engine})

    def progress(done: int) -> None:
        print(f"run {done} of {warmup + repeats}", file=sys.stderr)

    runs = measure(llm, workload, repeats=repeats, warmup=warmup, progress=progress)
    report = make_report(kind, llm.describe(), workload, runs)
    if json:
        print(encoder.dumps(report))
        return
    about = report["engine"]
    print(f"{model}, {about['dtype']}, {about['threads']} threads, {about['kernels']}", file=sys.stderr)
    sizes_text = f"{workload.num_prompts} requests of {workload.input_len} tokens in and {workload.output_len} out"
    print(f"{sizes_text}; {report['quality']}", file=sys.stderr)
    print_table((kind, "MEDIAN", "SPREAD OR PERCENTILES"), lines(report))
