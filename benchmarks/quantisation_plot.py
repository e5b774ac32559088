"""An SVG plot of the bytes of a quantised model against its KL divergence, with the frontier: the best at each size."""

from __future__ import annotations

import math
from html import escape
from typing import Any

WIDTH, HEIGHT = 980, 520
LEFT, RIGHT, TOP, BOTTOM = 80, 210, 50, 60
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")


class Axes:
    """Megabytes to the right, KL divergence upwards on a logarithmic scale."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        sizes, losses = zip(*points, strict=True)
        margin = 0.04 * (max(sizes) - min(sizes) or 1)
        self.low, self.high = min(sizes) - margin, max(sizes) + margin
        self.floor, self.ceiling = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))

    def at(self, megabytes: float, loss: float) -> tuple[float, float]:
        x = LEFT + (megabytes - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)
        share = (math.log10(loss) - self.floor) / (self.ceiling - self.floor)
        return x, HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        elements = []
        for power in range(self.floor, self.ceiling + 1):
            _, y = self.at(self.low, 10.0**power)
            elements.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
            elements.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
        step = max(1, round((self.high - self.low) / 8))
        for megabytes in range(math.ceil(self.low / step) * step, math.floor(self.high) + 1, step):
            x, _ = self.at(megabytes, 10.0**self.floor)
            elements.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
            elements.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{megabytes}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        elements.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">size of the weights, MB</text>')
        return elements


def draw_frontier(result: dict[str, Any]) -> str:
    """Return the plot of the rows of ``benchmarks/quantisation.py``; seeds are averaged."""
    points = _mean_points(result["rows"])
    axes = Axes([(megabytes, loss) for _, _, megabytes, loss in points])
    methods = list(dict.fromkeys(method for method, *_ in points))
    colors = {method: COLORS[index % len(COLORS)] for index, method in enumerate(methods)}
    best = frontier([(megabytes, loss) for _, _, megabytes, loss in points])
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(*point) for point in best))
    elements = [*axes.grid(), f'<polyline points="{path}" fill="none" stroke="#888" stroke-dasharray="5 4"/>']
    for method, name, megabytes, loss in points:
        x, y = axes.at(megabytes, loss)
        title = escape(f"{name}: {megabytes:.2f} MB, KL {loss:.4f}")
        elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colors[method]}"><title>{title}</title></circle>')
    for index, method in enumerate(methods):
        y = TOP + 16 + 22 * index
        elements.append(f'<circle cx="{WIDTH - RIGHT + 26}" cy="{y - 4}" r="5" fill="{colors[method]}"/>')
        elements.append(f'<text x="{WIDTH - RIGHT + 40}" y="{y}">{escape(method)}</text>')
    title = f"Quantised {result['model']}: KL divergence from the original, nats per token; dashed: best at each size"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n<text x="{LEFT}" y="26" font-size="16">{escape(title)}</text>\n'
        + "\n".join(elements)
        + "\n</svg>\n"
    )


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one beats in both size and loss, smallest first."""
    best: list[tuple[float, float]] = []
    for megabytes, loss in sorted(set(points)):
        if not best or loss < best[-1][1]:
            best.append((megabytes, loss))
    return best


def _mean_points(rows: list[dict[str, Any]]) -> list[tuple[str, str, float, float]]:
    """Return (method, name, MB, KL) of each case."""
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    return [
        (
            group[0]["options"]["method"],
            name,
            sum(row["bytes"] for row in group) / len(group) / 1e6,
            max(1e-6, sum(row["quality"]["kl_mean"] for row in group) / len(group)),
        )
        for name, group in by_case.items()
    ]
