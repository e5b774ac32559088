"""``hasten prune``: write a copy of a model with fewer parts, and measure what it costs in quality."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.compressed import NumTokens, Out, Text, check_texts, measure_result
from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, model_name
from hasten.cli.interrupt import INTERRUPTED, Interrupt
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.compress.prune.options import PruneOptions
from hasten.quality.window import NUM_TOKENS

OPTIONS = OptionGroup(
    "options",
    "Pruning",
    PruneOptions,
    {
        "method": "Importance. Of heads, neurons and channels: activation, weight, taylor or random. Of single weights, which "
        "become zero: magnitude (compared in each row), wanda or sparsegpt; zeros bring no speed by themselves.",
        "parts": "What is removed: heads (with their keys and values), neurons, width or layers.",
        "ratio": "Share of each part, or of the weights of a mask, that is removed.",
        "target_params": "Most parameters of the result, instead of --ratio.",
        "target_latency": "Most milliseconds per token that the result takes at batch 1, instead of --ratio. Models with random "
        "weights are measured to find the sizes.",
        "layer_score": "Importance of layers: influence (ShortGPT), or perplexity without each layer.",
        "pattern": "Of masks: free, or 2:4, where two of four consecutive inputs stay.",
        "steps": "Rounds of pruning, each with its share of the recovery. A tenth of the parameters per round recovers best.",
        "recover_minutes": "Minutes of training after pruning, by distillation from the unpruned model, in all rounds together.",
        "recover_steps": "Steps of this training, instead of --recover-minutes.",
        "recover_lr": "Peak learning rate of this training.",
        "recover_batch": "Sequences per step of this training.",
        "samples": "Calibration sequences.",
        "seq_len": "Tokens of a sequence, in calibration and in training.",
        "seed": "Seed of the choice of sequences and of the method random.",
        "threads": "Compute threads; one per usable core by default.",
    },
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help='Text to recover on: UTF-8, or .jsonl with a "text" per line. The calibration text if left out, which is small.',
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="FILE", help="Text to measure importance on, as --data; the shipped one if left out."),
]


@with_options(OPTIONS)
def prune(
    out: Out,
    name: ModelArgument = None,
    model: ModelOption = None,
    data: Data = None,
    calibration: Calibration = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped or killed.")] = False,
    text: Text = None,
    num_tokens: NumTokens = NUM_TOKENS,
    debug: Debug = False,
    *,
    options: OptionValues,
) -> None:
    """Write a copy of a model without its least important parts that vLLM and transformers load.

    Then measure its size, speed and quality against the original.
    """
    from hasten.compress.prune.run import run_pruning
    from hasten.entrypoints.progress import print_above_bar, step_bar

    model = model_name(name, model)
    chosen = PruneOptions(**options)
    check_texts(text, num_tokens)
    with Interrupt() as interrupt, step_bar("pruning") as progress:
        result = run_pruning(
            model,
            out,
            chosen,
            data=data,
            calibration=calibration,
            resume=resume,
            progress=progress,
            report=print_above_bar,
            should_stop=lambda: interrupt.requested,
        )
    if result is None:
        print("stopped; the same command with --resume continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    print(f"written to {out} in {result.seconds:.0f} s", file=sys.stderr)
    if interrupt.requested:  # while the files were put together
        print("stopped before it was measured", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    measure_result(result, text, num_tokens, chosen.threads, titles=("ORIGINAL", "PRUNED"))
