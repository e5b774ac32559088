"""Aligned plain-text tables on standard output. Rows are never truncated in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, header_style="bold")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width, and the default of 80 columns would cut long names.
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 10_000)
    console.print(table, markup=False)


def megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
