"""``hasten ls``: the models that are already here."""

from __future__ import annotations

import json as encoder
from datetime import UTC, datetime

from hasten.cli.engine_options import Debug, Json
from hasten.cli.print_table import megabytes, print_table


def ls(json: Json = False, debug: Debug = False) -> None:
    """List the models that are here: those shipped with hasten and those in the Hugging Face cache."""
    from hasten.checkpoints import hub

    rows: list[dict[str, object]] = [
        {"name": name, "source": "shipped", "commit": None, "bytes": _size(folder), "modified": None, "path": str(folder)}
        for name, folder in hub.SHIPPED.items()
        if folder.is_dir()
    ]
    for model in hub.cached_models():
        modified = datetime.fromtimestamp(model.last_modified, UTC).isoformat(timespec="seconds")
        rows.append(
            {
                "name": model.name,
                "source": "cache",
                "commit": model.commit,
                "bytes": model.size,
                "modified": modified,
                "path": str(model.path),
            }
        )
    if json:
        print(encoder.dumps(rows))
        return
    columns = ("NAME", "SIZE", "SOURCE", "COMMIT", "MODIFIED")
    print_table(columns, [_row(row) for row in rows])


def _row(row: dict[str, object]) -> tuple[str, ...]:
    commit, modified = str(row["commit"] or "-")[:8], str(row["modified"] or "-")[:10]
    return str(row["name"]), megabytes(float(str(row["bytes"]))), str(row["source"]), commit, modified


def _size(folder: object) -> int:
    from pathlib import Path

    return sum(file.stat().st_size for file in Path(str(folder)).rglob("*") if file.is_file())
