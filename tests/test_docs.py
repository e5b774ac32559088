"""Every snippet of the documentation runs, and every generated part is up to date.

The Python blocks and the commands of a page run in order; the blocks share one namespace. Only ``no-run: REASON`` in its
info string skips a block. ``hasten serve`` starts a server for the rest of the page, on a port that replaces the page's own.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

from hasten.cli.main import run
from tests.served_command import ServedCommands

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
HARDWARE = {"cpu": "CPU", "usable_cores": 2, "instruction_sets": ["AVX2", "AVX512", "AVX512-VNNI"]}  # of made-up results
OPT_OUT = re.compile(r"no-run: \w.+")
PROGRAMS = ("hasten ", "curl ", "openssl ", "chmod ")  # of commands that run; others are for the reader
ADDRESS = "127.0.0.1:8000"  # of the server, as pages write it
CURL_SETTINGS = "silent\nshow-error\nfail-with-body\n"  # an error status fails the command


@dataclass(frozen=True)
class Snippet:
    language: str
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """Return the commands: lines after ``$`` in a console block, any line of a script."""
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [line[2:] for line in lines if line.startswith("$ ")] if self.language == "console" else lines
        return [line for line in commands if line.startswith(PROGRAMS)]


def snippets(page: str) -> Iterator[Snippet]:
    for found in FENCE.finditer(page):
        language, _, option = found["info"].strip().partition(" ")
        if option:
            assert OPT_OUT.fullmatch(option), f"```{found['info']}: only 'no-run: REASON' skips a block"
            continue
        line = page[: found.start("text")].count("\n")
        if language in ("python", "console", "bash", "sh"):
            yield Snippet(language, found["text"], line)


def run_command(command: str) -> int:
    """Return the status of a command: of one of hasten's in this process, of any other in a shell."""
    if command.startswith("hasten "):
        return run(shlex.split(command, comments=True)[1:])
    Path(".curlrc").write_text(CURL_SETTINGS)
    completed = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "CURL_HOME": os.getcwd()}, capture_output=True, check=False
    )
    sys.stdout.write((completed.stdout + completed.stderr).decode(errors="replace"))
    return completed.returncode


def run_page(path: Path, page: str, servers: ServedCommands | None = None) -> int:
    """Run the snippets of a page and return their number. A traceback shows the page's own line numbers."""
    module = types.ModuleType(f"page_{path.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # the dataclass decorator looks up the module
    num_run, server = 0, None

    def placed(text: str) -> str:
        return text if server is None else text.replace(ADDRESS, server.address)

    try:
        for snippet in snippets(page):
            if snippet.language == "python":
                text = "\n" * snippet.line + placed(snippet.text)
                exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
                num_run += 1
            for command in snippet.commands:
                if command.startswith("hasten serve ") and servers is not None:
                    server = servers.start(command)
                else:
                    code = run_command(placed(command))
                    said = "" if server is None else f"; the server said: {server.output()[-4000:]}"
                    assert code == 0, f"{path.name}:{snippet.line}: {command}{said}"
                num_run += 1
    finally:
        del sys.modules[module.__name__]
    return num_run


@pytest.fixture(scope="module")
def servers():
    with ServedCommands() as running:
        yield running


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_run(path, tmp_path, monkeypatch, capsys, servers):
    """Snippets run in an empty folder with an empty standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    page = path.read_text(encoding="utf-8")
    try:
        num_run = run_page(path, page, servers)
    finally:
        sys.stdin.close()
    assert num_run == sum((snippet.language == "python") + len(snippet.commands) for snippet in snippets(page))


def test_pages_are_found():
    assert {"README.md", "README.zh-CN.md", "first-steps.md"} <= {path.name for path in PAGES}


def test_links_inside_the_repository_are_not_broken():
    broken = []
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date(generate):
    stale = [
        path.name for path, text in generate.generated().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make docs"


def quantisation_row(options, size, kl, interval):
    """A row as ``benchmarks/quantisation.py`` writes it."""
    quality = {"kl_mean": kl, "kl_interval": interval, "top1_agreement": 0.9, "candidate_perplexity": 10 + kl}
    return {
        "case": str(options),
        "options": options,
        "bytes": size,
        "original_bytes": 8_000_000,
        "tokens_per_second": 100.0,
        "seconds": 60 * kl,
        "quality": quality | {"reference_perplexity": 10.0, "num_tokens": 16_384},
    }


def test_the_quantisation_table_averages_seeds_and_puts_the_smallest_first(generate):
    gptq = {"method": "gptq", "bits": 4, "group_size": 128, "format": "gptq", "clip": "mse"}
    result = {
        "rows": [
            quantisation_row({"method": "fp8", "format": "fp8"}, 4_200_000, 0.004, [0.003, 0.005]),
            quantisation_row({"method": "auto", "max_kl": 0.01}, 3_000_000, 0.01, [0.009, 0.011]),
            quantisation_row(gptq, 2_000_000, 0.1, [0.08, 0.12]),
            quantisation_row(gptq, 2_000_000, 0.2, [0.19, 0.21]),
            quantisation_row({"method": "rtn", "bits": 8, "group_size": -1, "format": "gptq"}, 4_100_000, 0.002, [0.001, 0.003]),
        ],
        "original": {"tokens_per_second": 50.0},
        "hardware": HARDWARE,
    }
    lines = generate.quantisation_table(result, "docs/how-to/choose-a-quantisation.md").splitlines()
    assert lines[2:7] == [
        "| original | 16 | | | 8.00 | 0 | | 100 % | 10.000 | 50 | |",
        "| gptq, `--clip mse` | 4 | 128 | gptq | 2.00 | 0.15000 | 0.08000 to 0.21000 | 90.0 % | 10.150 | 100 | 9 |",
        "| auto, `--max-kl 0.01` | per layer |  | compressed-tensors | 3.00 | 0.01000 | 0.00900 to 0.01100 | 90.0 % | 10.010 "
        "| 100 | 1 |",
        "| rtn | 8 | output | gptq | 4.10 | 0.00200 | 0.00100 to 0.00300 | 90.0 % | 10.002 | 100 | 0 |",
        "| fp8 | 8 | 128 × 128 | fp8 | 4.20 | 0.00400 | 0.00300 to 0.00500 | 90.0 % | 10.004 | 100 | 0 |",
    ]
    assert lines[8].startswith("16,384 tokens of the held-out text; CPU, 2 cores, AVX512-VNNI;")
    assert {line.count("|") for line in lines[:7]} == {12}


def test_the_tables_of_the_result_cache_are_those_of_the_benchmark(generate):
    hits = {"p50": 0.00016, "p99": 0.0002, "p50_streamed": 0.001}
    load = {"requests": 200, "repeated": 0.3, "requests_per_second": {"without": 79.6, "with": 93.2}, "ratio": 1.17}
    result = {
        "hits": {"memory": hits, "sqlite": hits | {"p50": 0.0015}, "redis": hits | {"p99": 0.0034}},
        "equal_requests": {"requests": 64, "computed": 1, "shared": 63},
        "throughput": {"default": load | {"ratios": [1.2, 1.125, 1.17]}, "no other reuse": load | {"ratios": [1.3], "ratio": 1.3}},
        "hardware": HARDWARE,
    }
    lines = generate.result_cache_table(result, "docs/how-to/cache-results.md").splitlines()
    assert lines[2:5] == [
        "| `memory:` | 0.16 | 0.20 | 1.00 |",
        "| `sqlite:` | 1.50 | 0.20 | 1.00 |",
        "| `redis:`, same machine | 0.16 | 3.40 | 1.00 |",
    ]
    assert lines[8:11] == [
        "| 64 equal requests at the same time | | 1 computed, 63 shared | | |",
        "| 200 requests, 30 % repeat an earlier one | 80 requests/s | 93 requests/s | 1.17 | 1.12 to 1.20 |",
        "| the same, without prefix cache and speculation | 80 requests/s | 93 requests/s | 1.30 | 1.30 to 1.30 |",
    ]
    assert {line.count("|") for line in lines[:5]} == {5} and {line.count("|") for line in lines[6:11]} == {6}
    assert lines[12].startswith("CPU, 2 cores, AVX512-VNNI;")


def test_the_table_of_kv_files_is_that_of_the_benchmark(generate):
    result = {
        "model": "qwen3-0.6b",
        "prefix": 2000,
        "file_bytes": 229_392_760,
        "ttft_seconds": {"cold": 5.571, "loaded": 0.0806},
        "load_seconds": 0.335,
        "ratio_with_loading": 0.0743,
        "hardware": HARDWARE,
    }
    lines = generate.kv_files_table(result, "docs/how-to/share-prompt-prefixes.md").splitlines()
    assert lines[2:4] == ["| cold | | 5.57 s | 1 |", "| after `load_kv` | 0.34 s | 0.081 s | 0.074 |"]
    assert {line.count("|") for line in lines[:4]} == {5}
    assert lines[5].startswith(
        "Qwen3-0.6B shape in bfloat16, 2,000 saved tokens and 16 more, a file of 229 MB in the page cache; CPU,"
    )


def test_the_table_of_demonstrations_is_that_of_the_benchmark(generate):
    row = {
        "shots": 2,
        "runs": 3,
        "before": 0.0,
        "after": 0.456,
        "intervals": [[0.1, 0.2], [0.3, 0.4], [-0.1, 0.2]],
        "tokens": 24_549,
    }
    row |= {"prompt_tokens": [7.3, 42.6]}
    shuffled = row | {"after": 0.0123, "intervals": [[-0.1, 0.1]] * 3}
    result = {"rows": {"task": [row], "shuffled": [shuffled]}, "items": 240, "num_candidates": 16, "hardware": HARDWARE}
    lines = generate.demonstrations_table(result, "docs/how-to/optimize-a-prompt.md").splitlines()
    assert lines[2] == "| 2 | 0.00 | 0.46 | 2 of 3 runs | 0.01 | 0 of 3 runs | 24,549 | 7 → 43 |"
    assert {line.count("|") for line in lines[:3]} == {9}
    assert lines[4].startswith(
        "The task of this page with 240 items, 16 sets, means over seeds; demo model; CPU, 2 cores, AVX512-VNNI;"
    )


def test_the_page_of_metrics_has_the_names_that_prometheus_reads(generate):
    """As the exposition format of prometheus_client writes them."""
    families = [
        CounterMetricFamily("b", "Counts.", labels=("model_name", "engine")),
        GaugeMetricFamily("a:x", "Measures."),
        InfoMetricFamily("c", "Says."),
        HistogramMetricFamily("d", "Spreads."),
    ]
    lines = generate.metrics_page({"Engines": families}).splitlines()
    start = lines.index("## Engines")
    assert lines[start + 4 : start + 8] == [
        "| `b_total` | counter | `model_name`, `engine` | Counts. |",
        "| `a:x` | gauge |  | Measures. |",
        "| `c_info` | info |  | Says. |",
        "| `d` | histogram |  | Spreads. |",
    ]


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nassert False\n```\n", AssertionError),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", AssertionError),
        ("```console\n$ hasten generate demo --temperature -1 x\n```\n", AssertionError),
        ("```sh\nhasten genrate\n```\n", AssertionError),
        ("```python skip\nassert False\n```\n", AssertionError),
        ("```console\n$ curl http://127.0.0.1:1/\n```\n", AssertionError),
    ],
)
def test_a_wrong_snippet_is_caught(page, error, tmp_path, monkeypatch):
    """Negative control."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        run_page(Path("planted.md"), page)


def test_a_block_is_skipped_only_with_a_reason():
    assert run_page(Path("planted.md"), "```python no-run: needs a GPU\nassert False\n```\n") == 0
    assert run_page(Path("planted.md"), "```text\nnot code\n```\n") == 0
