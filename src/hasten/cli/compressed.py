"""What the commands that make a smaller model share: options, and the table against the original."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.report import megabytes, print_table
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.compress.compressed_model import CompressedModel

Text = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="Measure the quality on this text, too, beside the shipped one.")
]
NumTokens = Annotated[
    int, typer.Option("--num-tokens", metavar="TOKENS", help="Maximum tokens of each text that quality is measured on.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the result.", show_default=False)]


def check_texts(text: Path | None, num_tokens: int) -> None:
    """Raise ``InvalidOption`` before the work for what would fail after it."""
    from hasten.quality.documents import read_texts

    if num_tokens < 1:
        raise InvalidOption("--num-tokens is out of range", got=num_tokens, allowed="from 1 token")
    if text is not None:
        read_texts(text)


def measure_result(
    result: CompressedModel,
    text: Path | None,
    num_tokens: int,
    threads: int | None,
    *,
    titles: tuple[str, str],
    rows: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Print the table against the original, and write its figures into the model card.

    ``titles`` are those of the original and of the result; ``rows`` stand before what is measured.
    """
    from hasten.bench.machine import this_machine
    from hasten.compress.measure import measure
    from hasten.compress.model_card import write_model_card

    measurement = measure(result, text=text, num_tokens=num_tokens, threads=threads)
    write_model_card(result.folder, dataclasses.replace(result.card, figures=measurement.figures(this_machine().cpu)))
    if measurement.missing is not None:
        print(f"warning: not everything was measured: {measurement.missing}", file=sys.stderr)
    print_table(("", *titles), [*rows, *measurement.rows(megabytes)])
