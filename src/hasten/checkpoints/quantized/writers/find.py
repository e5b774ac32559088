"""``find_writer``: the writer of a format, by its name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import cast

from hasten.checkpoints.quantized import writers
from hasten.checkpoints.quantized.writers.base import FormatWriter
from hasten.core.errors import InvalidOption, nearest, show

_NOT_FORMATS = ("base", "find")


def writer_names() -> tuple[str, ...]:
    """Return the names of the formats, such as "compressed-tensors"."""
    names = (module.name for module in pkgutil.iter_modules(writers.__path__))
    return tuple(sorted(name.replace("_", "-") for name in names if name not in _NOT_FORMATS))


def find_writer(name: str) -> FormatWriter:
    """Return the writer of a format. Raises ``InvalidOption`` if there is none of this name."""
    names = writer_names()
    if name not in names:
        raise InvalidOption(
            "hasten does not write this format", got=show(name), allowed=", ".join(names), remedy=nearest(name, names)
        )
    return cast(FormatWriter, importlib.import_module(f"{writers.__name__}.{name.replace('-', '_')}").WRITER)
