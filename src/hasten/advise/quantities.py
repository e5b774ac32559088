"""Numbers as people read them: ``scaled``, ``seconds`` and ``rate``."""

from __future__ import annotations

_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scaled(value: float, unit: str = "") -> str:
    """Return a number with three digits and a prefix, such as ``1.23 GB``."""
    for factor, prefix in _UNITS:
        if value >= factor:
            number = f"{value / factor:.3g}" if value < 999.5 * factor else f"{value / factor:,.0f}"
            return f"{number} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def seconds(value: float) -> str:
    """Return a time with three digits, such as ``2.5 ms``."""
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if value >= factor:
            number = f"{value / factor:.3g}" if value < 999.5 * factor else f"{value / factor:,.0f}"
            return f"{number} {unit}"
    return f"{value * 1e6:.3g} µs"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
