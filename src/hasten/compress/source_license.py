"""``source_license``: the licence that a model's card names, for the card of what is made from it.

It reads three keys of the YAML front matter by itself: a YAML library takes exponential time for some small files.
"""

from __future__ import annotations

import re
from pathlib import Path

MAX_CARD_CHARS = 1 << 18  # that are read
MAX_VALUE = 200  # characters
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(.*?\n)---[ \t]*(\n|$)", re.DOTALL)
_KEY = re.compile(r"(license|license_name|license_link):[ \t]*(.*)")  # as the Hugging Face hub defines them
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")
_VALUE = re.compile(r"""(["']?)([A-Za-z0-9][\w.+:/?=&%@~ -]*)\1""", re.ASCII)


def source_license(source: Path) -> dict[str, str | list[str]]:
    """Return the licence keys in the ``README.md`` of a model folder.

    Empty if there are none or the file is broken: without a card, a model is as good.
    """
    lines = _front_matter(source / "README.md")
    found: dict[str, str | list[str]] = {}
    for number, line in enumerate(lines):
        if (key := _KEY.fullmatch(line)) is None:
            continue
        name, value = key[1], _without_comment(key[2])
        if value.startswith("["):
            items = value.removeprefix("[").removesuffix("]").split(",")
        else:
            items = [value] if value else _items(lines, number + 1)
        values = [match[2] for item in items if (match := _VALUE.fullmatch(item.strip())) and len(match[2]) <= MAX_VALUE]
        if values and len(values) == len(items):
            found[name] = values if not value or value.startswith("[") else values[0]
    return found


def _front_matter(card: Path) -> list[str]:
    try:
        if not card.is_file():  # opening a pipe would wait for a writer
            return []
        with card.open(encoding="utf-8-sig") as file:
            match = _FRONT_MATTER.match(file.read(MAX_CARD_CHARS))
    except (OSError, ValueError):  # ValueError: not UTF-8
        return []
    return [] if match is None else match[1].splitlines()


def _items(lines: list[str], start: int) -> list[str]:
    """Return the items of the list that begins at line ``start``."""
    items = []
    for number in range(start, len(lines)):
        if (item := _ITEM.fullmatch(lines[number])) is None:
            break
        items.append(_without_comment(item[1]))
    return items


def _without_comment(value: str) -> str:
    return f" {value}".partition(" #")[0].strip()
