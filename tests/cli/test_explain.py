"""``hasten explain``: tables, JSON, drawings, comparisons, measurement, and one sentence for each mistake."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from hasten.advise import measured_kernels, measured_machine
from hasten.advise.explanation import Explanation, explain
from hasten.advise.known_machines import known_machine
from hasten.advise.machine import KernelRate
from hasten.advise.measured_kernels import StepRates
from hasten.advise.measured_phases import MeasuredPhase
from hasten.advise.model_shape import Precision, read_shape
from hasten.advise.what_if import Settings, change_names, changed
from hasten.advise.work import Lengths
from hasten.cli.explain_tables import comparison_table, lines_of, measured_table, module_tables
from hasten.core.errors import InvalidOption


@pytest.fixture(autouse=True)
def measured(monkeypatch, tmp_path) -> None:
    """Replace the measurement of this machine's kernels, which takes seconds."""
    points = tuple((rows, 1e9 * rows) for rows in measured_kernels.ROWS)
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measured_machine, "measure_products", lambda *_: (KernelRate(points), 1e10))
    monkeypatch.setattr(measured_machine, "measure_steps", lambda *_: StepRates(1e10, 1e10, 1e-5, 1e-4))


def explained(**options) -> Explanation:
    shape = read_shape("demo", Precision(), is_here=False)
    return explain(shape, Lengths(**options), known_machine("l4"))


def test_the_tables_have_all_modules_and_phases(hasten):
    ran = hasten("explain", "demo", "--machine", "l4", "--batch", "2", "--prompt", "100", "--output", "50")
    assert (ran.code, ran.err) == (0, "")
    one = explained(batch=2, prompt=100, output=50)
    for title, text in lines_of(one):
        assert f"{title:<14}{text}\n" in ran.out
    for title, columns, rows in module_tables(one):
        assert f"\n{title}\n" in ran.out
        for row in [columns, *rows]:
            for cell in row:
                assert cell in ran.out
    assert "L·b·s·h·(H + 2·K)·d = 8·200·256·8·64" in ran.out
    assert "such requests at once" in ran.out


def test_json_is_the_explanation(hasten):
    ran = hasten(
        "explain", "demo", "--machine", "l4", "--prompt", "100", "--output", "50", "--json", "--compare", "int8", "batch=8"
    )
    report = json.loads(ran.out)
    one = explained(prompt=100, output=50)
    compared = report.pop("compare")
    assert report == json.loads(json.dumps(one.as_dict()))
    assert list(compared) == ["int8", "batch=8"]
    assert compared["batch=8"]["lengths"]["batch"] == 8
    assert compared["int8"]["weights"] == "int8"
    assert set(report["phases"]) == {"prefill", "decode", "request"}
    assert report["phases"]["decode"]["modules"]["scores"]["multiply_adds"] == 8 * 4 * 64 * (100 + 24 + 1)


def test_this_machine_is_measured_and_kept(hasten, tmp_path):
    for _ in range(2):
        report = json.loads(hasten("explain", "demo", "--json").out)
        assert report["machine"]["measured"]
        assert len(list((tmp_path / "cache").iterdir())) == 1


def test_given_rates_are_used(hasten):
    report = json.loads(hasten("explain", "demo", "--bandwidth", "4.3TB/s", "--flops", "790T", "--json").out)
    assert (report["machine"]["bytes_per_second"], report["machine"]["flops_per_second"]) == (4.3e12, 7.9e14)
    assert report["kv_budget"] is None  # its memory is not known
    report = json.loads(
        hasten("explain", "demo", "--machine", "h100", "--bandwidth", "1TB/s", "--kv-cache-memory", "1GiB", "--json").out
    )
    assert (report["machine"]["bytes_per_second"], report["machine"]["flops_per_second"]) == (1e12, 989.4e12)
    assert report["kv_budget"]["memory"] == 2**30


def test_weights_that_do_not_fit_are_named(hasten, tmp_path):
    config = {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = hasten("explain", str(tmp_path / "config.json"), "--machine", "l4")
    assert "the weights are larger than the 24 GB of memory" in ran.out


def test_changes_stand_side_by_side(hasten):
    changes = ("int8", "int4", "kv-int8", "batch=8", "speculation=4", "no-cache", "h100", "int4+batch=8")
    ran = hasten("explain", "demo", "--machine", "l4", "--compare", *changes)
    table = ran.out.split("\ncompared\n")[1].splitlines()
    assert [line.split("  ")[0].strip() for line in table[1:]] == ["as given", *changes]
    (_, columns, rows), *_ = comparison_table(explained(), {"x": explained(batch=8)})
    assert (len(rows), {len(row) for row in rows}) == (2, {len(columns)})


def test_drawings_are_written(hasten, tmp_path):
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"
    ran = hasten("explain", "demo", "--machine", "l4", "--svg", str(svg), "--html", str(html), "--json")
    assert ran.code == 0
    assert ET.fromstring(svg.read_text(encoding="utf-8")).tag.endswith("svg")
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    ran = hasten("explain", "demo", "--machine", "l4", "--svg", str(tmp_path / "no" / "a.svg"), "--json")
    assert (ran.code, ran.err.count("\n")) == (2, 1)


def test_predicted_and_measured_stand_side_by_side(hasten, model):
    """The prediction of this fixture is far off, so both phases are named."""
    ran = hasten("explain", model, "--prompt", "16", "--output", "8", "--batch", "2", "--threads", "1", "--measure", "--json")
    measured_phases = json.loads(ran.out)["measured"]
    assert set(measured_phases) == {"prefill", "decode"}
    for phase in measured_phases.values():
        assert phase["measured"] > 0
        assert phase["ratio"] == pytest.approx(phase["measured"] / phase["predicted"])
    rows = measured_table(
        [MeasuredPhase("prefill", 1.0, 1.1), MeasuredPhase("decode", 1.0, 1.2), MeasuredPhase("decode", 1.0, 0.8)]
    )[0][2]
    assert [row[3] for row in rows] == ["1.10", "1.20", "0.80"]
    assert ["off" in row[4] for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "one model is needed"),
        (["demoo"], "Did you mean 'demo'"),
        (["demo", "--batch", "0"], "batch=0"),
        (["demo", "--prompt", "99999999999"], "prompt=99999999999"),
        (["demo", "--prompt", "4096", "--output", "1"], "longer than the model's context"),
        (["demo", "--machine", "h10"], "Did you mean 'h100'"),
        (["demo", "--bandwidth", "4.3TiB/s", "--flops", "1T"], "--bandwidth is not a rate"),
        (["demo", "--bandwidth", "4.3TB/s", "--flops", "1 teraflop"], "--flops is not a rate"),
        (["demo", "--bandwidth", "4.3TB/s"], "--bandwidth and --flops need each other"),
        (["demo", "--quantization", "int9", "--machine", "l4"], "Did you mean 'int"),
        (["demo", "--kv-cache-dtype", "fp8"], "unknown kv_cache_dtype"),
        (["demo", "--kv-cache-memory", "4 potatoes"], "not an amount of memory"),
        (["demo", "--max-num-seqs", "0"], "max_num_seqs=0"),
        (["demo", "--num-speculative-tokens", "0"], "tokens=0"),
        (["demo", "--acceptance", "1.5"], "acceptance=1.5"),
        (["demo", "int8"], "--compare and changes need each other"),
        (["demo", "--compare"], "--compare and changes need each other"),
        (["demo", "--machine", "l4", "--compare", "int7"], "Did you mean 'int"),
        (["demo", "--machine", "l4", "--compare", "batch=x"], "batch is not a number"),
        (["demo", "--machine", "l4", "--compare", "batchs=8"], "Did you mean 'batch='"),
        (["demo", "--machine", "l4", "--measure"], "a measurement runs on this machine"),
        (["demo", "--no-cache", "--measure"], "a measurement runs on this machine"),
        (["demo", "--quantization", "fp8"], "quantization='fp8'"),
    ],
)
def test_a_mistake_is_one_sentence(hasten, arguments, expected):
    ran = hasten("explain", *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert expected in ran.err


def test_every_change_changes_the_settings():
    plain = Settings(precision=Precision(dtype="float32", kv_cache_dtype="int8"))
    for name in change_names():
        text = f"{name}7" if name.endswith("=") else name
        if name != "float32" and name != "kv-int8":
            assert changed(plain, text) != plain, text
    both = changed(Settings(acceptance=0.9), "int4+kv-int8+batch=8+speculation=4+no-cache")
    assert both.precision == Precision(quantization="int4", kv_cache_dtype="int8")
    assert (both.lengths.batch, both.speculation.tokens, both.speculation.acceptance, both.cache) == (8, 4, 0.9, False)
    for text in ("", "+", "batch", "batch=", "batch=-1", "batch=８", "batch=1e3", "batch=" + "9" * 99):
        with pytest.raises(InvalidOption):
            changed(plain, text)
