"""The SVG and the page: well-formed, without anything from elsewhere, and with the numbers of the explanation."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from tests.tiny_models import TINY

from hasten.advise.count import count, windows
from hasten.advise.explanation import Explanation, explain
from hasten.advise.html_page import write_page
from hasten.advise.known_machines import known_machine
from hasten.advise.model_shape import Precision, read_shape
from hasten.advise.product_shapes import ProductShape, product_shapes
from hasten.advise.quantities import rate, scaled, seconds
from hasten.advise.roofline_svg import FRAME, draw_roofline
from hasten.advise.work import Lengths, decode, prefill, step
from hasten.bench.roofline_axes import Frame, RooflineAxes

VOID = {"meta", "path", "circle", "rect", "line", "polyline", "br"}


class Tags(HTMLParser):
    """Holds what is open; a page that closes another tag than the last one is broken."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID or (tag in ("path", "circle") and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def explained() -> dict[str, Explanation]:
    shape, machine = read_shape("demo", Precision(), is_here=False), known_machine("l4")
    lengths = {"as given": Lengths(batch=2, prompt=100, output=50), "<batch> & 9": Lengths(batch=9, prompt=100, output=50)}
    return {name: explain(shape, own, machine) for name, own in lengths.items()}


def test_the_page_is_well_formed_and_loads_nothing(explained):
    page, tags = write_page(explained), Tags()
    tags.feed(page)
    assert tags.open == []
    assert not re.search(r"<script|<link|<img|<iframe|url\(|@import", page)
    addresses = [value for name, value in tags.attributes if value and "://" in value]
    assert addresses == ["http://www.w3.org/2000/svg"]  # a name, which is not loaded
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    assert "<batch> & 9" in "".join(tags.texts)
    assert "<batch>" not in page


def test_the_page_shows_every_product(explained):
    """Shapes of prefill and decode of 2 sequences: 100 tokens, and 1 token after 124 others."""
    page = write_page(explained)
    for text in (
        "[200 × 256] · [256 × 512] → [200 × 512]",
        "8 × [100 × 64] · [64 × 100] → [100 × 100]",
        "8 × [100 × 100] · [100 × 64] → [100 × 64]",
        "[200 × 256] · [256 × 1,536] → [200 × 1,536]",
        "[200 × 768] · [768 × 256] → [200 × 256]",
        "[2 × 256] · [256 × 512] → [2 × 512]",
        "8 × [1 × 64] · [64 × 125] → [1 × 125]",
        "8 × [1 × 125] · [125 × 64] → [1 × 64]",
        "[2 × 256] · [256 × 8,192] → [2 × 8,192]",
    ):
        assert text in page


@pytest.mark.parametrize("name", [name for name in TINY if "mixed" not in name])
@pytest.mark.parametrize(("batch", "tokens", "context"), [(1, 9, 0), (4, 1, 30), (3, 5, 12)])
def test_the_shapes_multiply_to_the_count(tiny, name, batch, tokens, context):
    shape = read_shape(str(tiny(name)), Precision(), is_here=False)
    spec, work = shape.spec, step([(tokens, context)] * batch, windows(shape.spec))
    counted = count(spec, work, shape.storage, full_products=True)
    shapes = product_shapes(spec, spec.num_layers - 1, batch=batch, tokens=tokens, context=context, rows=batch)
    for module, product in shapes.items():
        if "window" in name and module in ("scores", "weighted values"):
            keys = min(context, spec.layers[-1].attention.window - 1) + tokens
            assert keys in (product.inner, product.columns)
        else:
            assert counted.module(module).multiply_adds == product.multiply_adds * (
                1 if module == "vocabulary" else spec.num_layers
            )


def test_the_svg_has_a_point_for_each_phase_where_it_belongs(explained):
    root = ET.fromstring(draw_roofline(explained))
    namespace = "{http://www.w3.org/2000/svg}"
    points = [
        p for p in root.iter() if p.tag in (f"{namespace}circle", f"{namespace}path") and p.find(f"{namespace}title") is not None
    ]
    titles = [p.find(f"{namespace}title").text for p in points]
    assert titles == [
        f"{name}: {phase}, limited by {one.prefill.time.limit if phase == 'prefill' else one.decode.time.limit}"
        for name, one in explained.items()
        for phase in ("prefill", "decode")
    ]
    for p in points:
        if p.tag.endswith("circle"):
            assert FRAME.left <= float(p.get("cx")) <= FRAME.width - FRAME.right
            assert FRAME.top <= float(p.get("cy")) <= FRAME.height - FRAME.bottom


def test_the_svg_has_a_roof_for_each_arithmetic(explained):
    """int8 and int4 share a roof of this machine; another machine has none."""
    machine, lengths = known_machine("l4"), Lengths(prompt=100, output=50)
    shapes = {name: read_shape("demo", Precision(quantization=name), is_here=False) for name in ("int8", "int4")}
    quantized = {name: explain(shape, lengths, machine) for name, shape in shapes.items()}
    elsewhere = {"h100": explain(shapes["int8"], lengths, known_machine("h100"))}
    drawing = draw_roofline({**explained, **quantized, **elsewhere})
    assert re.findall(r">([^<>]* T/s)<", drawing)[-2:] == ["bfloat16: 121 T/s", "int8, int4: 242 T/s"]
    assert len(list(ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_axes_are_logarithmic():
    axes = RooflineAxes(Frame(300, 200, 50, 50, 20, 30), (1, 100), (10, 1000))
    assert axes.at(1, 10) == (50, 170)
    assert axes.at(100, 1000) == (250, 20)
    assert axes.at(10, 100) == pytest.approx((150, 95))
    roofs = ET.fromstring(f"<g>{axes.roofs(10, {'a & b': 100.0, 'high': 1e9})}</g>")
    lines = [line.get("points") for line in roofs.iter("polyline")]
    assert lines == ["50.0,170.0 150.0,95.0 250.0,95.0", "50.0,170.0 250.0,20.0"]
    grid = ET.fromstring(f"<g>{axes.grid('t', 'x', 'y')}</g>")
    assert len(list(grid.iter("line"))) == 6
    powers = RooflineAxes(Frame(300, 200, 50, 50, 20, 30), (1, 10), (1e11, 1e15)).grid("t", "x", "y")
    assert re.findall(r">(\d+ ?\S*/s)<", powers) == ["100 G/s", "1 T/s", "10 T/s", "100 T/s", "1 P/s"]


def test_a_shape_is_written_with_its_repetitions():
    assert ProductShape(2, 3, 4).text() == "[2 × 3] · [3 × 4] → [2 × 4]"
    assert ProductShape(2, 3, 4, times=5).text().startswith("5 × [")
    assert ProductShape(2, 3, 4, times=5).multiply_adds == 120


def test_quantities_have_three_digits():
    assert [scaled(value, "B") for value in (0, 12, 999, 1000, 1234, 999_499, 999_999, 2.5e12)] == [
        "0 B",
        "12 B",
        "999 B",
        "1 kB",
        "1.23 kB",
        "999 kB",
        "1,000 kB",
        "2.5 TB",
    ]
    assert [seconds(value) for value in (0.0, 2.5e-6, 0.0125, 1.5, 1234.5)] == ["0 µs", "2.5 µs", "12.5 ms", "1.5 s", "1,234 s"]
    assert [rate(value) for value in (1.234, 99.4, 1234.5)] == ["1.23", "99.4", "1,234"]
    assert math.isfinite(float(scaled(3.0)))


def test_prefill_and_decode_of_a_page_are_those_of_work(explained):
    one = explained["as given"]
    assert (one.prefill.work, one.decode.work) == (prefill(2, 100), decode(2, 124))
