"""``parse_bytes``: an amount of memory in bytes."""

from __future__ import annotations

import re

from hasten.core.errors import InvalidOption, show

MAX_BYTES = 2**50
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(size: int | str, option: str) -> int:
    """Return the bytes of ``"4GiB"``, ``"500MB"`` or a number.

    Raises ``InvalidOption`` that names the option.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        number, unit = float(size), ""
    else:
        match = re.fullmatch(r"\s*([0-9]{1,16}(?:\.[0-9]{1,16})?)\s*([kmgt]?i?)b?\s*", str(size).lower())
        number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    num_bytes = number * _UNITS.get(unit, 0)
    if not 1 <= num_bytes <= MAX_BYTES:
        raise InvalidOption(
            f"{option} is not an amount of memory",
            got=show(size),
            allowed="1 byte to 1,024 TiB, as a number of bytes or a size such as '4GiB' or '500MB'",
        )
    return int(num_bytes)
