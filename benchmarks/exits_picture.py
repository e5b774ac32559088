"""Layers against what leaving early costs, as SVG: perplexity on the left, KL on the right, a line per rule."""

from html import escape
from typing import Any

WIDTH, HEIGHT = 980, 420
LEFT, TOP, BOTTOM, GAP, LEGEND = 80, 50, 60, 90, 150
PANEL = (WIDTH - LEFT - GAP - LEGEND) / 2
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
DEAREST = 0.1  # of perplexity's rise, up to which the curve is drawn
TICKS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)


class Axes:
    """A panel: layers across, a loss up. From data to pixels."""

    def __init__(self, panel: int, fewest: float, most: float, top: float) -> None:
        self.left = LEFT + panel * (PANEL + GAP)
        self.fewest, self.most, self.top = fewest, most, top

    def at(self, layers: float, loss: float) -> tuple[float, float]:
        across = (layers - self.fewest) / (self.most - self.fewest)
        return self.left + across * PANEL, HEIGHT - BOTTOM - loss / self.top * (HEIGHT - TOP - BOTTOM)


def curve(result: dict[str, Any]) -> str:
    most = result["num_layers"]
    base = result["perplexity"]
    rules = {rule: _near(values["points"]) for rule, values in result["rules"].items()}
    fewest = min([most - 1.0, *(point["mean_layers"] for points in rules.values() for point in points)])
    fewest = int(fewest * 4) / 4
    drawn = []
    for panel, (title, of) in enumerate((("perplexity, relative rise", _rise), ("KL from the whole model, nats per token", _kl))):
        axes = Axes(panel, fewest, most, DEAREST)
        drawn.append(_grid(axes, title))
        for (rule, points), color in zip(rules.items(), COLORS, strict=False):
            inside = [(point, of(point)) for point in points if of(point) <= DEAREST]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (axes.at(p["mean_layers"], max(0.0, loss)) for p, loss in inside))
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
            for point, loss in inside:
                x, y = axes.at(point["mean_layers"], max(0.0, loss))
                words = f"{rule} above {point['threshold']:g}: {point['mean_layers']:.2f} layers, {loss:+.4f}"
                drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{escape(words)}</title></circle>')
    for place, (rule, color) in enumerate(zip(rules, COLORS, strict=False)):
        y = TOP + 20 + 22 * place
        drawn.append(f'<rect x="{WIDTH - LEGEND + 20}" y="{y - 10}" width="10" height="10" fill="{color}"/>')
        drawn.append(f'<text x="{WIDTH - LEGEND + 38}" y="{y}">{escape(rule)}</text>')
    title = f"Leaving {result['options']['model']} early, {result['texts']} unseen texts; perplexity {base:.2f} with all layers"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n<text x="{LEFT}" y="26" font-size="16">{escape(title)}</text>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _rise(point: dict[str, float]) -> float:
    return 2.718281828459045 ** point["loss"] - 1


def _kl(point: dict[str, float]) -> float:
    return point["kl"]


def _near(points: list[dict[str, float]]) -> list[dict[str, float]]:
    return [point for point in points if _rise(point) <= DEAREST or point["kl"] <= DEAREST]


def _grid(axes: Axes, title: str) -> str:
    parts = []
    for tick in TICKS:
        x, y = axes.at(axes.fewest, tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x + PANEL:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    layers = axes.fewest
    while layers <= axes.most + 1e-9:
        x, y = axes.at(layers, 0)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y:.1f}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{layers:g}</text>')
        layers += 0.25
    middle = axes.left + PANEL / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 18}" text-anchor="middle">layers per token</text>')
    parts.append(f'<text x="{middle:.1f}" y="{TOP - 6}" text-anchor="middle">{escape(title)}</text>')
    return "\n".join(parts)
