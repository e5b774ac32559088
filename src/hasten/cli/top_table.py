"""``top_table``: the figures of ``hasten top`` as a table of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hasten.core.errors import clip, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

NONE = "-"  # not measured, or nothing in this time
MAX_NAME = 60  # characters


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:,.1f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.2f} GB"


Format = Callable[[float], str]
ROWS: tuple[tuple[str, tuple[tuple[str, Format], ...]], ...] = (
    ("requests running / waiting", (("running", _count), ("waiting", _count))),
    ("requests finished per second", (("requests_per_second", _rate),)),
    ("tokens per second in / out", (("prompt_tokens_per_second", _rate), ("output_tokens_per_second", _rate))),
    ("TTFT p50 / p95", (("ttft_p50", _seconds), ("ttft_p95", _seconds))),
    ("ITL p50 / p95", (("itl_p50", _seconds), ("itl_p95", _seconds))),
    ("E2E p50 / p95", (("e2e_p50", _seconds), ("e2e_p95", _seconds))),
    ("KV cache held", (("kv_usage", _percent),)),
    ("prefix cache hits", (("prefix_cache_hit_rate", _percent),)),
    ("result cache hits", (("result_cache_hit_rate", _percent),)),
    ("draft tokens accepted", (("acceptance", _percent),)),
    ("preemptions", (("preemptions", _count),)),
    ("engine CPU / memory", (("cpu", _percent), ("resident_bytes", _gigabytes))),
)


def cells(figures: Mapping[str, Any]) -> list[str]:
    """Return one model's column, in the order of ``ROWS``."""
    return [" / ".join(_cell(figures[key], write) for key, write in parts) for _, parts in ROWS]


def model_title(figures: Mapping[str, Any]) -> str:
    """Return the title of a model's column."""
    return _text(figures["model"]) + ("" if figures["up"] else " (does not answer)")


def server_line(server: Mapping[str, Any]) -> str:
    """Return the figures of the server in one line."""
    rejected = ", ".join(f"{_text(reason)} {count:,.0f}" for reason, count in server["rejected"].items()) or "none"
    parts = [
        f"hasten {_text(server['version'] or NONE)}",
        f"HTTP {_cell(server['http_requests_per_second'], _rate)}/s, {_cell(server['in_flight'], _count)} in flight",
        f"refused: {rejected}",
        f"CPU {_cell(server['cpu'], _percent)}",
        f"memory {_cell(server['resident_bytes'], _gigabytes)}",
    ]
    return " | ".join(parts)


def top_table(figures: Mapping[str, Any], note: str = "") -> RenderableType:
    """Return the server's line, a column for each model, and a note below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for model in figures["models"]:
        table.add_column(Text(model_title(model), style="bold" if model["up"] else "bold red"), justify="right")
    columns = [cells(model) for model in figures["models"]]
    for index, (title, _) in enumerate(ROWS):
        table.add_row(title, *(column[index] for column in columns))
    body = table if columns else Text("no model is loaded")
    parts = [Text(server_line(figures["server"])), Text(""), body]
    return Group(*parts, Text(""), Text(note, style="dim")) if note else Group(*parts)


def _cell(value: float | None, write: Format) -> str:
    return NONE if value is None else write(value)


def _text(value: str) -> str:
    """Return a text of the server without control characters."""
    return clip(printable(value), MAX_NAME)
