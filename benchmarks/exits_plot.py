"""An SVG plot of layers per token against the loss of early exit, with one line per rule.

The left panel shows perplexity, the right panel KL divergence.
"""

from html import escape
from typing import Any

WIDTH, HEIGHT = 980, 420
LEFT, TOP, BOTTOM, GAP, LEGEND = 80, 50, 60, 90, 150
PANEL = (WIDTH - LEFT - GAP - LEGEND) / 2
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
MAX_LOSS = 0.1  # the curves are drawn up to this loss
TICKS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)


class Axes:
    """The axes of one panel, which map layers and loss to pixels."""

    def __init__(self, panel: int, min_layers: float, max_layers: float, max_loss: float) -> None:
        self.left = LEFT + panel * (PANEL + GAP)
        self.min_layers, self.max_layers, self.max_loss = min_layers, max_layers, max_loss

    def at(self, layers: float, loss: float) -> tuple[float, float]:
        fraction = (layers - self.min_layers) / (self.max_layers - self.min_layers)
        return self.left + fraction * PANEL, HEIGHT - BOTTOM - loss / self.max_loss * (HEIGHT - TOP - BOTTOM)


def draw_curves(result: dict[str, Any]) -> str:
    max_layers = result["num_layers"]
    base = result["perplexity"]
    rules = {rule: _in_range(values["points"]) for rule, values in result["rules"].items()}
    min_layers = min([max_layers - 1.0, *(point["mean_layers"] for points in rules.values() for point in points)])
    min_layers = int(min_layers * 4) / 4
    elements = []
    for panel, (title, loss_of) in enumerate(
        (("perplexity, relative increase", _increase), ("KL divergence from the full model, nats per token", _kl))
    ):
        axes = Axes(panel, min_layers, max_layers, MAX_LOSS)
        elements.append(_grid(axes, title))
        for (rule, points), color in zip(rules.items(), COLORS, strict=False):
            inside = [(point, loss_of(point)) for point in points if loss_of(point) <= MAX_LOSS]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(p["mean_layers"], max(0.0, loss)) for p, loss in inside))
            elements.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
            for point, loss in inside:
                x, y = axes.at(point["mean_layers"], max(0.0, loss))
                label = f"{rule} above {point['threshold']:g}: {point['mean_layers']:.2f} layers, {loss:+.4f}"
                elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{escape(label)}</title></circle>')
    for index, (rule, color) in enumerate(zip(rules, COLORS, strict=False)):
        y = TOP + 20 + 22 * index
        elements.append(f'<rect x="{WIDTH - LEGEND + 20}" y="{y - 10}" width="10" height="10" fill="{color}"/>')
        elements.append(f'<text x="{WIDTH - LEGEND + 38}" y="{y}">{escape(rule)}</text>')
    title = f"Early exit of {result['options']['model']}, {result['texts']} unseen texts; perplexity {base:.2f} with all layers"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n<text x="{LEFT}" y="26" font-size="16">{escape(title)}</text>\n'
        + "\n".join(elements)
        + "\n</svg>\n"
    )


def _increase(point: dict[str, float]) -> float:
    return 2.718281828459045 ** point["loss"] - 1


def _kl(point: dict[str, float]) -> float:
    return point["kl"]


def _in_range(points: list[dict[str, float]]) -> list[dict[str, float]]:
    return [point for point in points if _increase(point) <= MAX_LOSS or point["kl"] <= MAX_LOSS]


def _grid(axes: Axes, title: str) -> str:
    parts = []
    for tick in TICKS:
        x, y = axes.at(axes.min_layers, tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x + PANEL:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    layers = axes.min_layers
    while layers <= axes.max_layers + 1e-9:
        x, y = axes.at(layers, 0)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y:.1f}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{layers:g}</text>')
        layers += 0.25
    middle = axes.left + PANEL / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 18}" text-anchor="middle">layers per token</text>')
    parts.append(f'<text x="{middle:.1f}" y="{TOP - 6}" text-anchor="middle">{escape(title)}</text>')
    return "\n".join(parts)
