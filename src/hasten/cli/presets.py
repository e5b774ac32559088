"""``hasten presets``: the named sampling settings, each with its reason."""

from __future__ import annotations

import json as encoder
from typing import Annotated, Literal

import typer

from hasten.cli import report
from hasten.cli.engine_options import Json

LanguageOption = Annotated[Literal["en", "zh"], typer.Option("--language", help="Language of the sentences: en or zh.")]


def presets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One preset; all of them if left out.")] = None,
    language: LanguageOption = "en",
    json: Json = False,
) -> None:
    """List the presets of --preset: their settings, and why they suit the purpose."""
    from hasten.sampling.presets import PRESETS, find_preset

    found = PRESETS if name is None else {name: find_preset(name)}
    if json:
        rows = [
            {"name": key, "settings": dict(preset.settings), "reason": preset.explain(language)} for key, preset in found.items()
        ]
        print(encoder.dumps(rows, ensure_ascii=False))
        return
    columns = ("NAME", "SETTINGS", "REASON") if language == "en" else ("名称", "参数", "理由")
    table = []
    for key, preset in found.items():
        settings = ", ".join(f"{setting}={value}" for setting, value in preset.settings.items())
        table.append((key, settings, preset.explain(language)))
    report.print_table(columns, table)
