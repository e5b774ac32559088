"""``hasten prompt feedback``: record opinions of outputs, and report which variant is better."""

from __future__ import annotations

import dataclasses
import hashlib
import json as encoder
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.engine_options import Debug, Json
from hasten.cli.report import print_table
from hasten.core.errors import InvalidOption, clip, printable, show

if TYPE_CHECKING:
    from hasten.prompts.feedback import Feedback
    from hasten.prompts.feedback_report import FeedbackReport, VariantFeedback

MAX_LISTED = 10**6
MAX_SHOWN = 60  # characters of a comment in the table

feedback = typer.Typer(
    help="Record feedback on outputs, and report which variant is better.", no_args_is_help=True, rich_markup_mode=None
)

FeedbackFile = Annotated[Path, typer.Option("--file", metavar="FILE", help="The SQLite file of the feedback.")]
DEFAULT_FILE = Path("feedback.sqlite")


@feedback.command()
def add(
    opinion: Annotated[str, typer.Argument(metavar="OPINION", help="good or bad.", show_default=False)],
    variant: Annotated[
        str, typer.Option("--variant", metavar="FILE_OR_NAME", help="The template that the output came from.", show_default=False)
    ],
    comment: Annotated[str | None, typer.Option("--comment", metavar="TEXT", help="Why.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model that wrote the output.")] = None,
    output_id: Annotated[str | None, typer.Option("--output-id", metavar="ID", help="The id of the request or the output.")] = None,
    prompt: Annotated[Path | None, typer.Option("--prompt", metavar="FILE", help="The prompt, for --keep-text.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The output; without --keep-text, its SHA-256 is stored as its id."),
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Store prompt and output, which may be private.")] = False,
    file: FeedbackFile = DEFAULT_FILE,
    debug: Debug = False,
) -> None:
    """Record whether an output is good or bad."""
    from hasten.prompts.feedback import Feedback, FeedbackStore
    from hasten.prompts.load_variant import load_variant
    from hasten.quality.documents import read_text_file

    if opinion not in ("good", "bad"):
        raise InvalidOption("an opinion is one of two", got=show(opinion), allowed="good, bad")
    if prompt is not None and not keep_text:
        raise InvalidOption("a prompt is stored with --keep-text only", remedy="Add --keep-text, or leave --prompt out")
    texts = {name: read_text_file(path) for name, path in (("prompt", prompt), ("output", output)) if path is not None}
    if "output" in texts and output_id is None:
        output_id = hashlib.sha256(texts["output"].encode()).hexdigest()
    loaded = load_variant(variant)
    entry = Feedback(
        variant=loaded.name,
        digest=loaded.digest,
        is_good=opinion == "good",
        time=time.time(),
        model=model,
        output_id=output_id,
        comment=comment,
        **(texts if keep_text else {}),
    )
    with FeedbackStore(file) as store:
        store.add(entry)


@feedback.command()
def ls(
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_LISTED, help="Maximum entries that are listed.")] = 100,
    file: FeedbackFile = DEFAULT_FILE,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List feedback, newest first."""
    from hasten.prompts.feedback import FeedbackStore

    with FeedbackStore(file, create=False) as store:
        entries = store.newest(limit)
    if json:
        print(encoder.dumps([dataclasses.asdict(entry) for entry in entries], ensure_ascii=False))
        return
    print_table(("TIME", "VARIANT", "OPINION", "MODEL", "OUTPUT", "COMMENT"), [_cells(entry) for entry in entries])


@feedback.command()
def report(file: FeedbackFile = DEFAULT_FILE, json: Json = False, debug: Debug = False) -> None:
    """Show the share of good outputs per variant, which is best, and whether the difference is real."""
    from hasten.prompts.feedback import RECORD_SOME, FeedbackStore
    from hasten.prompts.feedback_report import report_feedback

    with FeedbackStore(file, create=False) as store:
        counts = store.counts()
    if not counts:
        raise InvalidOption("there is no feedback", got=file, remedy=RECORD_SOME)
    found = report_feedback(counts)
    if json:
        print(encoder.dumps(found.as_dict(), ensure_ascii=False))
        return
    columns = ("VARIANT", "GOOD", "BAD", "SHARE OF GOOD (95 %)", "BEST MINUS THIS (95 % TOGETHER)")
    print_table(columns, [_report_cells(variant) for variant in found.variants])
    print(_conclusion(found))


def _cells(entry: Feedback) -> tuple[str, ...]:
    moment = datetime.fromtimestamp(entry.time).isoformat(" ", "seconds")
    texts = (entry.model or "-", (entry.output_id or "-")[:12], clip(entry.comment or "-", MAX_SHOWN))
    return (moment, printable(entry.variant), "good" if entry.is_good else "bad", *map(printable, texts))


def _report_cells(variant: VariantFeedback) -> tuple[str, ...]:
    low, high = variant.interval
    share = f"{variant.share:.1%} ({low:.1%} to {high:.1%})"
    difference = "-"
    if variant.difference is not None and variant.difference_interval is not None:
        low, high = (100 * bound for bound in variant.difference_interval)
        difference = f"{100 * variant.difference:+.1f} ({low:+.1f} to {high:+.1f}) points"
    return printable(variant.name), f"{variant.num_good:,}", f"{variant.num_bad:,}", share, difference


def _conclusion(found: FeedbackReport) -> str:
    best, *others = found.variants
    if not others:
        return f"{printable(best.name)} has no other variant to compare with"
    if found.winner is not None:
        return f"winner: {printable(found.winner)}"
    near = [printable(best.name), *(printable(other.name) for other in others if not other.is_worse)]
    return f"no difference shown between {', '.join(near)}"
