"""The roofline model as SVG: the machine's limits, and every workload by its operations per byte."""

from html import escape
from typing import Any

from hasten.bench.roofline_axes import Frame, RooflineAxes

FRAME = Frame(width=980, height=640, left=90, right=240, top=50, bottom=70)
COLORS = (
    *("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"),
    *("#e377c2", "#bcbd22", "#ff9896", "#aec7e8", "#98df8a"),
)
SHAPES = {"bf16": "circle", "int8": "square", "int4": "diamond", "int4-g128": "bar", "q4_k_m": "up", "fp8": "down"}


def draw_roofline(result: dict[str, Any]) -> str:
    rows, limits = result["rows"], result["limits"]
    points = [_point(row) for row in rows]
    roofs = {"int8": limits["int8"], "bf16": limits["bf16"]}
    high = max([*roofs.values(), *(y for _, y in points)]) * 2
    low = min([*(y for _, y in points), limits["bytes_per_second"]]) / 3
    axes = RooflineAxes(FRAME, (0.5, max([1000.0, *(x * 2 for x, _ in points)])), (low, high))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    color = {engine: COLORS[i % len(COLORS)] for i, engine in enumerate(engines)}
    labels = {f"{name} ({limits['units'][name]}): {ops / 1e12:.2f} T/s": ops for name, ops in roofs.items()}
    title = f"{result['model']} on {result['hardware']['cpu']}, {result['threads']} threads, {result['date'][:10]}"
    elements = [
        axes.grid(title, "operations needed per byte needed", "operations per second"),
        axes.roofs(limits["bytes_per_second"], labels),
    ]
    for row, (x, y) in zip(rows, points, strict=True):
        title = f"{row['engine']} {row['label']}, {row['words']}: {row['tokens_per_second']['median']:.1f} tokens/s"
        elements.append(_mark(row["weights"], *axes.at(x, y), color[row["engine"]], title))
    elements.append(_legend(color))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {FRAME.width} {FRAME.height}" '
        'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{FRAME.width}" height="{FRAME.height}" fill="white"/>\n' + "\n".join(elements) + "\n</svg>\n"
    )


def _point(row: dict[str, Any]) -> tuple[float, float]:
    """Return the operations per byte of the workload, and the operations per second of the median repeat."""
    demand = row["demand"]
    seconds = sorted(row["seconds"])[len(row["seconds"]) // 2]
    return demand["ops"] / demand["bytes"], demand["ops"] / seconds


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
    x, y, parts = FRAME.width - FRAME.right + 24, FRAME.top + 10, []
    for engine, stroke in color.items():
        square = f'<rect x="{x - 5}" y="{y - 5}" width="10" height="10" fill="{stroke}"/>'
        parts.append(f'{square}<text x="{x + 14}" y="{y + 5}">{escape(engine)}</text>')
        y += 22
    y += 12
    for weights in SHAPES:
        parts.append(_mark(weights, x, y, "#444444", weights) + f'<text x="{x + 14}" y="{y + 5}">{weights}</text>')
        y += 22
    return "\n".join(parts)
