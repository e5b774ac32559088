"""``hasten data logits``: store a teacher's outputs, so that distillation needs no teacher in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, model_name
from hasten.cli.interrupt import INTERRUPTED, Interrupt
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.compress.distill.cache_options import CacheOptions
from hasten.core.errors import InvalidOption, show

CACHE = OptionGroup(
    "options",
    "Cache",
    CacheOptions,
    {
        "top_k": "Tokens whose probabilities are stored at each position; the sum of all others is one number.",
        "seq_len": "Tokens of the windows that a text is cut into, or of the longest example.",
        "validation_fraction": "Part of the data that is kept for validation.",
        "batch": "Sequences that the teacher reads at a time.",
        "threads": "Compute threads; one per usable core by default.",
    },
)
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="FILE",
        help='The data: UTF-8 text, or .jsonl with a "text", or an "input" and an "output", per line.',
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the cache.", show_default=False)]
HiddenLayers = Annotated[
    str | None,
    typer.Option("--hidden-layers", metavar="LAYER,...", help="Store hidden states after these layers too, counted from 1."),
]


@with_options(CACHE)
def logits(
    data: Data,
    out: Out,
    name: ModelArgument = None,
    model: ModelOption = None,
    hidden_layers: HiddenLayers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped or killed.")] = False,
    debug: Debug = False,
    *,
    options: OptionValues,
) -> None:
    """Store a teacher's most likely tokens and hidden states for the sequences of a file.

    hasten distill reads them with --teacher-cache.
    """
    from hasten.compress.distill.cache_teacher import cache_teacher
    from hasten.entrypoints.progress import step_bar

    chosen = CacheOptions(**options, hidden_layers=_layers(hidden_layers))
    with Interrupt() as interrupt, step_bar("running the teacher") as progress:
        report = cache_teacher(
            model_name(name, model),
            data,
            out,
            chosen,
            resume=resume,
            progress=progress,
            on_log=lambda message: print(message, file=sys.stderr),
            should_stop=lambda: interrupt.requested,
        )
    if report is None:
        print("stopped; the same command with --resume continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    print(f"written to {out}", file=sys.stderr)


def _layers(text: str | None) -> tuple[int, ...]:
    """Return layers from 0 for a list of layers from 1. Raises ``InvalidOption``."""
    try:
        layers = [int(item) for item in text.split(",")] if text is not None else []
        if any(layer < 1 for layer in layers):
            raise ValueError
    except ValueError:
        raise InvalidOption("--hidden-layers has the wrong form", got=show(text), allowed="layers from 1, such as 3,7") from None
    return tuple(layer - 1 for layer in layers)
