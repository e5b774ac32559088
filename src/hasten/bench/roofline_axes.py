"""``RooflineAxes``: logarithmic axes of a roofline, their grid, and the roofs of a machine, as SVG.

Lines and words have the colour of the text around them (``currentColor``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

PREFIXES = ("", "k", "M", "G", "T", "P", "E")
GRID = 'stroke="currentColor" stroke-opacity="0.15"'


@dataclass(frozen=True, slots=True)
class Frame:
    """Pixels: the size of the drawing, and the margins around its axes."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


class RooflineAxes:
    """Maps operations per byte (x) and operations per second (y) to pixels."""

    def __init__(self, frame: Frame, x: tuple[float, float], y: tuple[float, float]) -> None:
        """``x`` and ``y``: the least and the largest value."""
        self.frame = frame
        self.x, self.y = ((math.log10(low), math.log10(high)) for low, high in (x, y))

    def at(self, x: float, y: float) -> tuple[float, float]:
        frame = self.frame
        fraction_x = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        fraction_y = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        left = frame.left + fraction_x * (frame.width - frame.left - frame.right)
        return left, frame.height - frame.bottom - fraction_y * (frame.height - frame.top - frame.bottom)

    def grid(self, title: str, x_label: str, y_label: str) -> str:
        """Return a line and a number for each power of ten, and the words around the axes."""
        frame, parts = self.frame, []
        bottom, right = frame.height - frame.bottom, frame.width - frame.right
        for x in _decades(self.x):
            px, _ = self.at(x, 10 ** self.y[0])
            parts.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{frame.top}" y2="{bottom}" {GRID}/>')
            parts.append(_text(px, bottom + 20, f"{x:g}", "middle"))
        for y in _decades(self.y):
            _, py = self.at(10 ** self.x[0], y)
            parts.append(f'<line x1="{frame.left}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}" {GRID}/>')
            parts.append(_text(frame.left - 8, py + 4, _operations(y), "end"))
        parts.append(f'<text x="{frame.left}" y="28" font-size="16" fill="currentColor">{escape(title)}</text>')
        parts.append(_text((frame.left + right) / 2, frame.height - 20, x_label, "middle"))
        middle = frame.height / 2
        turned = f'transform="rotate(-90 20 {middle:g})"'
        parts.append(f'<text x="20" y="{middle:g}" text-anchor="middle" fill="currentColor" {turned}>{escape(y_label)}</text>')
        return "\n".join(parts)

    def roofs(self, bytes_per_second: float, ops_per_second: Mapping[str, float]) -> str:
        """Return the slope of the memory and one flat roof per label."""
        parts, left, right = [], 10 ** self.x[0], 10 ** self.x[1]
        for label, ops in ops_per_second.items():
            corner = min(ops / bytes_per_second, right)
            points = [self.at(left, left * bytes_per_second), self.at(corner, corner * bytes_per_second)]
            if corner < right:
                points.append(self.at(right, ops))
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/>')
            x, y = points[-1]
            parts.append(_text(x - 6, y - 6, label, "end"))
        x, y = self.at(left * 4, left * 4 * bytes_per_second)
        parts.append(_text(x + 14, y + 8, f"memory: {bytes_per_second / 1e9:,.1f} GB/s", "start"))
        return "\n".join(parts)


def _decades(side: tuple[float, float]) -> list[float]:
    return [10.0**n for n in range(math.ceil(side[0]), math.floor(side[1]) + 1)]


def _operations(per_second: float) -> str:
    """Return a power of ten with a prefix, such as ``100 G/s``."""
    exponent = min(max(int(math.log10(per_second) + 1e-9) // 3, 0), len(PREFIXES) - 1)
    return f"{per_second / 1000**exponent:g} {PREFIXES[exponent]}/s"


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(words)}</text>'
