"""``hasten ls``, ``hasten pull`` and ``hasten rm``: list, download and remove models."""

from __future__ import annotations

import json as encoder
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.engine_options import Debug, Json, ModelArgument, ModelOption, model_name
from hasten.cli.report import megabytes, print_table
from hasten.core.errors import CheckpointError, HastenError


def ls(
    long: Annotated[
        bool,
        typer.Option("--long", "-l", help="Also show bits per weight, memory and kernels, for which headers are read."),
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the models on this machine: those shipped with hasten and those in the Hugging Face cache."""
    from hasten.checkpoints import hub

    names = ("name", "source", "commit", "bytes", "modified", "path", "scheme")
    models = [
        (name, "shipped", None, _size(folder), None, str(folder), _scheme(folder))
        for name, folder in hub.SHIPPED.items()
        if folder.is_dir()
    ] + [
        (
            model.name,
            "cache",
            model.commit,
            model.size,
            datetime.fromtimestamp(model.last_modified, UTC).isoformat(timespec="seconds"),
            str(model.path),
            _scheme(model.path),
        )
        for model in hub.cached_models()
    ]
    rows: list[dict[str, Any]] = [dict(zip(names, model, strict=True)) for model in models]
    if long:
        rows = [row | _plan(Path(row["path"])) for row in rows]
    if json:
        print(encoder.dumps(rows))
        return
    titles = ("NAME", "SIZE", "WEIGHTS", "SOURCE", "COMMIT", "MODIFIED") + (("BITS", "MEMORY", "KERNELS") if long else ())
    print_table(titles, [_cells(row, long=long) for row in rows])


def _cells(row: dict[str, Any], *, long: bool) -> tuple[str, ...]:
    """Return the cells of a model, with "-" for what is not known."""
    commit, modified = row["commit"] or "-", row["modified"] or "-"
    cells = (row["name"], megabytes(row["bytes"]), row["scheme"], row["source"], commit[:8], modified[:10])
    if not long:
        return cells
    if row["kernels"] is None:
        return (*cells, "-", "-", "-")
    return (*cells, f"{row['bits_per_weight']:.1f}", megabytes(row["weight_bytes"]), row["kernels"])


_PLANNED = ("bits_per_weight", "weight_bytes", "kernels")


def _plan(folder: Path) -> dict[str, Any]:
    """Return what the weights take in the file and in memory, and the kernels.

    None stands for each of them if the model cannot be loaded.
    """
    from hasten.core.engine_options import EngineOptions
    from hasten.entrypoints.model_report import report_model

    try:
        report = report_model(str(folder), EngineOptions())
    except HastenError:
        return dict.fromkeys(_PLANNED)
    return {name: report[name] for name in _PLANNED}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _scheme(folder: Path) -> str:
    """Return how the weights are stored; "-" if the configuration cannot be read."""
    from hasten.checkpoints.json_values import read_json
    from hasten.checkpoints.quantized.scheme_name import UNKNOWN, scheme_name

    try:
        return scheme_name(read_json(folder / "config.json"))
    except CheckpointError:
        return UNKNOWN


def pull(
    name: ModelArgument = None,
    model: ModelOption = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit; the newest if left out.")] = None,
    debug: Debug = False,
) -> None:
    """Download a model of the Hugging Face hub, or complete an interrupted download, and print its folder."""
    from hasten.checkpoints.hub import resolve

    print(resolve(model_name(name, model), revision, quiet=not sys.stderr.isatty()))


def rm(name: ModelArgument = None, model: ModelOption = None, debug: Debug = False) -> None:
    """Remove a model, in all its revisions, from the Hugging Face cache."""
    from hasten.checkpoints.hub import remove

    model = model_name(name, model)
    print(f"removed {model}, {megabytes(remove(model))} freed", file=sys.stderr)
