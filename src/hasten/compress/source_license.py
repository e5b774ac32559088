"""``source_license``: the licence that a model's card names, for the card of what is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

KEYS = ("license", "license_name", "license_link")  # of the YAML front matter, as the Hugging Face hub defines them
MAX_CARD_BYTES = 1 << 18  # a longer file is not read: parsing YAML takes seconds per megabyte
MAX_VALUE = 200  # characters


def source_license(source: Path) -> dict[str, str | list[str]]:
    """Return the licence keys in the ``README.md`` of a model folder; empty if there are none or the file is broken."""
    from huggingface_hub.repocard import metadata_load

    card = source / "README.md"
    try:
        if not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
            return {}
        values = metadata_load(card)
    except Exception:  # of any class: the YAML of a stranger. Without a card, a model is as good
        return {}
    found = {key: (values or {}).get(key) for key in KEYS}
    return {key: value for key, value in found.items() if _is_license(value)}


def _is_license(value: object) -> TypeGuard[str | list[str]]:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_VALUE for name in names)
