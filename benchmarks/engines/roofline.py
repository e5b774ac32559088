"""The roofline model as SVG: the machine's limits, and every workload by its operations per byte."""

import math
from html import escape
from typing import Any

WIDTH, HEIGHT = 980, 640
LEFT, RIGHT, TOP, BOTTOM = 90, 240, 50, 70
COLORS = (
    *("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"),
    *("#e377c2", "#bcbd22", "#ff9896", "#aec7e8", "#98df8a"),
)
SHAPES = {"bf16": "circle", "int8": "square", "int4": "diamond", "int4-g128": "bar", "q4_k_m": "up", "fp8": "down"}


class Axes:
    """Logarithmic axes that map data to pixels."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = (tuple(math.log10(v) for v in side) for side in (x, y))

    def at(self, x: float, y: float) -> tuple[float, float]:
        fraction_x = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        fraction_y = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + fraction_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - fraction_y * (HEIGHT - TOP - BOTTOM)

    def decades(self, side: tuple[float, ...]) -> list[float]:
        return [10.0**n for n in range(math.ceil(side[0]), math.floor(side[1]) + 1)]


def draw_roofline(result: dict[str, Any]) -> str:
    rows, limits = result["rows"], result["limits"]
    points = [_point(row) for row in rows]
    roofs = {"int8": limits["int8"], "bf16": limits["bf16"]}
    high = max([*roofs.values(), *(y for _, y in points)]) * 2
    low = min([*(y for _, y in points), limits["bytes_per_second"]]) / 3
    axes = Axes((0.5, max([1000.0, *(x * 2 for x, _ in points)])), (low, high))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    color = {engine: COLORS[i % len(COLORS)] for i, engine in enumerate(engines)}
    elements = [_grid(axes, result), *_roofs(axes, roofs, limits)]
    for row, (x, y) in zip(rows, points, strict=True):
        title = f"{row['engine']} {row['label']}, {row['words']}: {row['tokens_per_second']['median']:.1f} tokens/s"
        elements.append(_mark(row["weights"], *axes.at(x, y), color[row["engine"]], title))
    elements.append(_legend(color))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(elements) + "\n</svg>\n"
    )


def _point(row: dict[str, Any]) -> tuple[float, float]:
    """Return the operations per byte of the workload, and the operations per second of the median repeat."""
    demand = row["demand"]
    seconds = sorted(row["seconds"])[len(row["seconds"]) // 2]
    return demand["ops"] / demand["bytes"], demand["ops"] / seconds


def _roofs(axes: Axes, roofs: dict[str, float], limits: dict[str, Any]) -> list[str]:
    elements, left, right = [], 10 ** axes.x[0], 10 ** axes.x[1]
    speed = limits["bytes_per_second"]
    for name, ops in roofs.items():
        corner = ops / speed
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (axes.at(left, left * speed), axes.at(corner, ops), axes.at(right, ops)))
        elements.append(f'<polyline points="{path}" fill="none" stroke="black" stroke-width="1.5"/>')
        x, y = axes.at(right, ops)
        label = f"{name} ({limits['units'][name]}): {ops / 1e12:.2f} T/s"
        elements.append(f'<text x="{x - 6:.1f}" y="{y - 6:.1f}" text-anchor="end">{escape(label)}</text>')
    x, y = axes.at(left * 4, left * 4 * speed)
    elements.append(f'<text x="{x - 10:.1f}" y="{y - 6:.1f}" text-anchor="end">memory: {speed / 1e9:.1f} GB/s</text>')
    return elements


def _grid(axes: Axes, result: dict[str, Any]) -> str:
    parts = []
    for x in axes.decades(axes.x):
        px, _ = axes.at(x, 10 ** axes.y[0])
        parts.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#dddddd"/>')
        parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x:g}</text>')
    for y in axes.decades(axes.y):
        _, py = axes.at(10 ** axes.x[0], y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{y / 1e9:g} G/s</text>')
    title = f"{result['model']} on {result['hardware']['cpu']}, {result['threads']} threads, {result['date'][:10]}"
    parts.append(f'<text x="{LEFT}" y="28" font-size="16">{escape(title)}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 20}" text-anchor="middle">operations needed per byte needed</text>')
    parts.append(
        f'<text x="20" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 20 {HEIGHT / 2})">operations per second</text>'
    )
    return "\n".join(parts)


def _mark(weights: str, x: float, y: float, color: str, title: str) -> str:
    style = f'fill="{color}" fill-opacity="0.75" stroke="{color}"'
    shape = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {style}>',
        "square": f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {style}>',
        "diamond": f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" {style}>',
        "bar": f'<path d="M{x - 3:.1f} {y - 6:.1f}h6v12h-6z" {style}>',
        "up": f'<path d="M{x:.1f} {y - 6:.1f}l6 11h-12z" {style}>',
        "down": f'<path d="M{x:.1f} {y + 6:.1f}l6 -11h-12z" {style}>',
    }[SHAPES[weights]]
    return f"{shape}<title>{escape(title)}</title></{shape[1:].split()[0]}>"


def _legend(color: dict[str, str]) -> str:
    x, y, parts = WIDTH - RIGHT + 24, TOP + 10, []
    for engine, stroke in color.items():
        square = f'<rect x="{x - 5}" y="{y - 5}" width="10" height="10" fill="{stroke}"/>'
        parts.append(f'{square}<text x="{x + 14}" y="{y + 5}">{escape(engine)}</text>')
        y += 22
    y += 12
    for weights in SHAPES:
        parts.append(_mark(weights, x, y, "#444444", weights) + f'<text x="{x + 14}" y="{y + 5}">{weights}</text>')
        y += 22
    return "\n".join(parts)
