"""``hasten data select``: the few best examples of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.engine_options import Debug
from hasten.cli.interrupt import INTERRUPTED, Interrupt
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.cli.report import print_table
from hasten.compress.distill.selection.options import METHODS, SelectOptions

SELECTION = OptionGroup(
    "options",
    "Selection",
    SelectOptions,
    {
        "count": "Examples that are chosen.",
        "by": f"{', '.join(METHODS[:-1])} or {METHODS[-1]}. All of them drop near-duplicates and examples of wrong lengths first.",
        "max_similarity": "Jaccard similarity from which two examples are near-duplicates, of which the first is kept.",
        "min_words": "Least words of an output; punctuation marks count, too.",
        "max_words": "Most words of an example; no limit by default.",
        "seq_len": "Tokens of the longest example that the models read.",
        "pool": "Diverse examples are chosen from this many times --count of the best.",
        "batch": "Examples that a model reads at a time.",
        "seed": "Seed of the method random.",
        "threads": "Compute threads; one per usable core by default.",
    },
)
Data = Annotated[
    Path, typer.Argument(metavar="FILE", help='The pool: .jsonl with an "input" and an "output" per line.', show_default=False)
]
Out = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="A new file for the examples; its report is FILE.json.", show_default=False)
]
Student = Annotated[
    str | None, typer.Option("--student", metavar="MODEL", help="The model to train; its losses and embeddings decide.")
]
Teacher = Annotated[
    str | None, typer.Option("--teacher", metavar="MODEL", help="Of loss-gap: the model whose losses are the measure.")
]


@with_options(SELECTION)
def select(
    data: Data,
    out: Out,
    student: Student = None,
    teacher: Teacher = None,
    debug: Debug = False,
    *,
    options: OptionValues,
) -> None:
    """Choose the few best examples of a file.

    They are no duplicates, diverse, and those from which the student has most to learn.
    """
    from hasten.compress.distill.selection.select import select_examples
    from hasten.entrypoints.progress import step_bar

    chosen = SelectOptions(**options)
    with Interrupt() as interrupt, step_bar("selecting") as progress:
        selection = select_examples(
            data,
            out,
            chosen,
            student=student,
            teacher=teacher,
            progress=progress,
            should_stop=lambda: interrupt.requested,
        )
    if selection is None:
        print("stopped; nothing was written", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if len(selection.chosen) < chosen.count:
        print(f"warning: only {len(selection.chosen):,} of {chosen.count:,} examples are left to choose", file=sys.stderr)
    rows = [(reason, f"{count:,}") for reason, count in selection.dropped.items() if count]
    print_table(("EXAMPLES", f"{selection.num_given:,}"), [*rows, ("chosen", f"{len(selection.chosen):,}")])
