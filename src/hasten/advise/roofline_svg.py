"""``draw_roofline``: a machine's limits and the phases of models as points, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hasten.advise.explanation import Explanation, Phase
from hasten.bench.roofline_axes import Frame, RooflineAxes

FRAME = Frame(width=980, height=560, left=90, right=250, top=50, bottom=70)
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
# Of light and of dark surroundings; a page sets its own.
STYLE = "<style>svg{color:#111;background:#fff}@media(prefers-color-scheme:dark){svg{color:#eee;background:#16181c}}</style>"


def draw_roofline(explanations: Mapping[str, Explanation], *, has_style: bool = True) -> str:
    """Return the drawing. The first machine's roofs are drawn; a point's height is its predicted rate.

    ``has_style``: colours of its own, which a page around it does not need.
    """
    first = next(iter(explanations.values()))
    points = [(name, phase) for name, one in explanations.items() for phase in one.phases if phase.time is not None]
    peaks = _peaks(list(explanations.values()))
    intensities = [phase.count.total.intensity for _, phase in points]
    rates = [phase.flops_per_second for _, phase in points]
    low_x, high_x = min([0.5, *intensities]) / 2, max([1000.0, *intensities]) * 2
    low_y = min([*rates, first.machine.bandwidth * low_x]) / 2
    axes = RooflineAxes(FRAME, (low_x, high_x), (low_y, max([*peaks.values(), *rates]) * 3))
    title = f"{first.shape.name} on {first.machine.name}"
    elements = [
        axes.grid(title, "floating-point operations per byte", "floating-point operations per second"),
        axes.roofs(first.machine.bandwidth, peaks),
    ]
    color = {name: COLORS[index % len(COLORS)] for index, name in enumerate(explanations)}
    elements += [_point(axes, name, phase, color[name]) for name, phase in points]
    elements.append(_legend(color))
    size = f'viewBox="0 0 {FRAME.width} {FRAME.height}"'
    body = "\n".join([STYLE, *elements] if has_style else elements)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13" role="img">\n{body}\n</svg>\n'


def _peaks(explanations: Sequence[Explanation]) -> dict[str, float]:
    """Return the roofs of the first machine: those of its products, and those of their dtypes."""
    machine = explanations[0].machine
    shapes = [one.shape for one in explanations if one.machine.name == machine.name]
    names = dict.fromkeys(name for shape in shapes for name in (shape.arithmetic, str(shape.dtype).removeprefix("torch.")))
    roofs: dict[float, list[str]] = {}
    for name in names:
        roofs.setdefault(machine.rate(name).peak, []).append(name)
    return {f"{', '.join(own)}: {rate / 1e12:,.3g} T/s": rate for rate, own in roofs.items()}


def _point(axes: RooflineAxes, name: str, phase: Phase, color: str) -> str:
    assert phase.time is not None
    x, y = axes.at(phase.count.total.intensity, phase.flops_per_second)
    style = f'fill="{color}" fill-opacity="0.8" stroke="{color}"'
    title = f"<title>{escape(name)}: {phase.name}, limited by {phase.time.limit}</title>"
    if phase.name == "prefill":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" {style}>{title}</circle>'
    return f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" {style}>{title}</path>'


def _legend(color: Mapping[str, str]) -> str:
    x, y, parts = FRAME.width - FRAME.right + 24, FRAME.top + 10, []
    for name, fill in color.items():
        parts.append(f'<rect x="{x - 5}" y="{y - 5}" width="10" height="10" fill="{fill}"/>{_word(x, y, name)}')
        y += 22
    y += 12
    parts.append(f'<circle cx="{x}" cy="{y}" r="6" fill="currentColor"/>{_word(x, y, "prefill")}')
    y += 22
    parts.append(f'<path d="M{x} {y - 7}l7 7l-7 7l-7 -7z" fill="currentColor"/>{_word(x, y, "one step of decode")}')
    return "\n".join(parts)


def _word(x: float, y: float, words: str) -> str:
    return f'<text x="{x + 14}" y="{y + 5}" fill="currentColor">{escape(words)}</text>'
