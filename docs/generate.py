"""Writes the generated parts of the documentation: the command line reference and the tables of benchmarks.

``python docs/generate.py`` writes them; a test compares them with what stands in the files.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RESULT = RESULTS / "vs_transformers.json"
QUANTISATION_RESULT = RESULTS / "quantisation-demo.json"
RESULT_CACHE_RESULT = RESULTS / "result_cache.json"
KV_FILES_RESULT = RESULTS / "kv_files.json"
DEMONSTRATIONS_RESULT = RESULTS / "demonstrations.json"
# README -> the words of its table
WORDS = {
    "README.md": (
        "work",
        "hasten",
        "transformers",
        "ratio",
        "not measured yet: ",
        "Measured on {cpu}, {cores} cores, torch {torch}, transformers {transformers}.",
    ),
    "README.zh-CN.md": (
        "任务",
        "hasten",
        "transformers",
        "倍数",
        "尚未测量：",
        "测量环境：{cpu}，{cores} 核，torch {torch}，transformers {transformers}。",
    ),
}
# Page -> the words of its table: the header, the original's row, one scale per output, bits per layer, and the caption.
QUANTISATION_WORDS = {
    "docs/how-to/choose-a-quantisation.md": (
        "method | bits | group | format | MB | KL | 95 % interval | top-1 | perplexity | tokens/s | seconds",
        "original",
        "output",
        "per layer",
        "{tokens:,} tokens of the held-out text; {cpu}, {cores} cores, {kernels}; "
        "[`quantisation-demo.json`](../../benchmarks/results/quantisation-demo.json).",
    ),
    "docs/how-to/choose-a-quantisation.zh.md": (
        "方法 | 位数 | 分组 | 格式 | MB | KL | 95 % 区间 | top-1 | 困惑度 | tokens/s | 用时（秒）",
        "原模型",
        "按输出",
        "逐层选择",
        "测试文本 {tokens:,} 个 token；{cpu}，{cores} 核，{kernels}；"
        "[`quantisation-demo.json`](../../benchmarks/results/quantisation-demo.json)。",
    ),
}
# Page -> the words of its two tables: each header and its rows, and the caption.
RESULT_CACHE_WORDS = {
    "docs/how-to/cache-results.md": (
        "time of a hit, ms | p50 | p99 | p50, streamed",
        ("`memory:`", "`sqlite:`", "`redis:`, same machine"),
        "load | without a result cache | with | ratio, median | lowest to highest",
        "{equal} equal requests at the same time",
        "{computed} computed, {shared} shared",
        ("{requests} requests, {percent:.0f} % repeat an earlier one", "the same, without prefix cache and speculation"),
        "{rate:.0f} requests/s",
        "{low:.2f} to {high:.2f}",
        "{cpu}, {cores} cores, {kernels}; [`result_cache.json`](../../benchmarks/results/result_cache.json).",
    ),
    "docs/how-to/cache-results.zh.md": (
        "命中的用时（毫秒） | p50 | p99 | 流式 p50",
        ("`memory:`", "`sqlite:`", "`redis:`，同一台机器"),
        "负载 | 不用结果缓存 | 使用 | 倍数，中位数 | 最低至最高",
        "{equal} 个相同请求同时到达",
        "计算 {computed} 个，共用 {shared} 个",
        ("{requests} 个请求，{percent:.0f} % 与先前的相同", "同上，关掉前缀缓存和投机解码"),
        "{rate:.0f} 请求/秒",
        "{low:.2f} 至 {high:.2f}",
        "{cpu}，{cores} 核，{kernels}；[`result_cache.json`](../../benchmarks/results/result_cache.json)。",
    ),
}
# Page -> the words of its table: the header, the two starts, the unit, and the caption.
KV_FILES_WORDS = {
    "docs/how-to/share-prompt-prefixes.md": (
        "start of a process | loading | TTFT | loading and TTFT, of cold",
        ("cold", "after `load_kv`"),
        " s",
        "{model} shape in bfloat16, {tokens:,} saved tokens and 16 more, a file of {megabytes:.0f} MB in the page cache; {cpu}, "
        "{cores} cores, {kernels}; [`kv_files.json`](../../benchmarks/results/kv_files.json).",
    ),
    "docs/how-to/share-prompt-prefixes.zh.md": (
        "进程启动后 | 加载用时 | TTFT | 加载加 TTFT，与冷启动之比",
        ("冷启动", "`load_kv` 之后"),
        " 秒",
        "{model} 结构，bfloat16，保存了 {tokens:,} 个 token，提示另有 16 个；文件 {megabytes:.0f} MB，已在页缓存里；{cpu}，"
        "{cores} 核，{kernels}；[`kv_files.json`](../../benchmarks/results/kv_files.json)。",
    ),
}
# Page -> the words of its table: the header, a number of runs, seconds, and the caption.
DEMONSTRATIONS_WORDS = {
    "docs/how-to/optimize-a-prompt.md": (
        "`demonstrations`, `--shots` | held-out score before | after | interval above 0 | shuffled outputs, after "
        "| interval above 0 | tokens to optimise | prompt tokens",
        "{real} of {runs} runs",
        "The task of this page with {items} items, {candidates} sets, means over seeds; demo model; {cpu}, {cores} cores, "
        "{kernels}; [`demonstrations.json`](../../benchmarks/results/demonstrations.json).",
    ),
    "docs/how-to/optimize-a-prompt.zh.md": (
        "`demonstrations`，`--shots` | 留出集得分：之前 | 之后 | 区间大于 0 | 打乱输出：之后 | 区间大于 0 "
        "| 优化用的 token | 提示 token",
        "{runs} 次中 {real} 次",
        "英文页的任务，{items} 题，比较 {candidates} 组，多个种子的平均；demo 模型；{cpu}，{cores} 核，{kernels}；"
        "[`demonstrations.json`](../../benchmarks/results/demonstrations.json)。",
    ),
}
METRICS_INTRO = """\
# Metrics

Generated from the server's metrics by `make docs`; do not edit. [How to monitor a server](../how-to/monitor.md) says which ones to
look at.

`/metrics` sends them in Prometheus's text format, or as OpenMetrics. Names that begin with `vllm:` mean what they mean in vLLM. A
histogram `NAME` has `NAME_bucket`, `NAME_sum` and `NAME_count`. A metric without a value, such as those of a result cache that a
model lacks, is left out.
"""
# Of Anthropic's messages; a test of the server sends each of them.
ANTHROPIC_HARMLESS = ("metadata", "service_tier", "inference_geo", "user_profile_id", "workspace_id", "diagnostics")
SUFFIXES = {"counter": "_total", "info": "_info"}  # that Prometheus's format adds to a name
KERNELS = ("AVX2", "AVX512-VNNI", "AMX-INT8")  # instruction sets that a caption names: the last one of a machine
SCHEME = ("method", "bits", "group_size", "format")  # options with a column of their own


def generated() -> dict[Path, str]:
    """Each file that has a generated part, as it should be."""
    from hasten.cli.reference import cli_reference

    reference = ROOT / "docs" / "reference"
    files = {reference / "cli.md": cli_reference(), reference / "http-api.md": http_api(), reference / "metrics.md": metrics()}
    for name in WORDS:
        files[ROOT / name] = with_part(name, "benchmarks", benchmark_table(name))
    result = json.loads(QUANTISATION_RESULT.read_text(encoding="utf-8"))
    for name in QUANTISATION_WORDS:
        files[ROOT / name] = with_part(name, "quantisation", quantisation_table(result, name))
    result = json.loads(RESULT_CACHE_RESULT.read_text(encoding="utf-8"))
    for name in RESULT_CACHE_WORDS:
        files[ROOT / name] = with_part(name, "result-cache", result_cache_table(result, name))
    result = json.loads(KV_FILES_RESULT.read_text(encoding="utf-8"))
    for name in KV_FILES_WORDS:
        files[ROOT / name] = with_part(name, "kv-files", kv_files_table(result, name))
    result = json.loads(DEMONSTRATIONS_RESULT.read_text(encoding="utf-8"))
    for name in DEMONSTRATIONS_WORDS:
        files[ROOT / name] = with_part(name, "demonstrations", demonstrations_table(result, name))
    return files


def http_api() -> str:
    """From the OpenAPI document of a server with all its surfaces; settings of requests have the words of the command line."""
    from hasten.cli.sampling_options import HELP
    from hasten.serving.app import create_app
    from hasten.serving.http_reference import http_reference
    from hasten.serving.models.model_config import ModelConfig
    from hasten.serving.models.model_pool import ModelPool
    from hasten.serving.openai.harmless_fields import HarmlessFields
    from hasten.serving.openai.refused_fields import REFUSED
    from hasten.serving.server_options import ServerOptions
    from hasten.serving.server_state import ServerState
    from hasten.serving.surfaces import all_surfaces

    options = ServerOptions()
    app = create_app(ServerState(options, ModelPool([ModelConfig("demo", "demo")], options)), all_surfaces())
    # --exit-rule is the field exit_rule here.
    words = {name: re.sub(r"--([a-z-]+)", lambda flag: flag[1].replace("-", "_"), text) for name, text in HELP.items()}
    harmless = {"openai": HarmlessFields.model_fields.keys(), "anthropic": ANTHROPIC_HARMLESS}
    return http_reference(app.openapi(), harmless=harmless, refused={"openai": REFUSED}, descriptions=words)


def metrics() -> str:
    """From what a scrape of a server with one model and a result cache would have."""
    from hasten import LLM
    from hasten.serving.metrics.model_families import model_families
    from hasten.serving.metrics.model_snapshot import ModelSnapshot
    from hasten.serving.metrics.server_families import process_families, server_families
    from hasten.serving.metrics.server_metrics import ServerMetrics

    options = {"result_cache": "memory:", "speculative_method": "suffix", "max_model_len": 256, "kv_cache_memory": "16MiB"}
    with LLM("demo", **options) as llm:
        snapshots = [ModelSnapshot("demo", llm.describe(), llm.stats())]
    return metrics_page(
        {
            "Engines": model_families(snapshots),
            "The server": server_families(ServerMetrics(count_connections=int), []),
            "Processes": process_families(snapshots),
        }
    )


def metrics_page(groups: dict[str, Iterable[Any]]) -> str:
    """The tables of Prometheus's metric families, by headline."""
    lines = [METRICS_INTRO]
    for title, families in groups.items():
        lines += [f"## {title}\n", "| metric | type | labels | what it counts |", "| --- | --- | --- | --- |"]
        for family in families:
            labels = ", ".join(f"`{label}`" for label in family._labelnames)
            name = family.name + SUFFIXES.get(family.type, "")
            lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
        lines.append("")
    return "\n".join(lines)


def with_part(name: str, part: str, text: str) -> str:
    """A page with the text between the part's markers replaced."""
    begin, end = f"<!-- {part}:begin -->\n", f"<!-- {part}:end -->"
    before, rest = (ROOT / name).read_text(encoding="utf-8").split(begin)
    return before + begin + text + end + rest.split(end)[1]


def benchmark_table(readme: str) -> str:
    """From ``rows`` of the committed result: ``{work, work_zh, hasten, transformers, ratio}``, all text but the ratio."""
    work, hasten, transformers, ratio, missing, caption = WORDS[readme]
    head = f"| {work} | {hasten} | {transformers} | {ratio} |\n| --- | --- | --- | --- |\n"
    if not RESULT.is_file():
        return f"{head}| {missing}`python benchmarks/vs_transformers.py` | | | |\n"
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    named = "work_zh" if "zh" in readme else "work"
    rows = [f"| {row[named]} | {row['hasten']} | {row['transformers']} | {row['ratio']:.2f}× |" for row in result["rows"]]
    where = caption.format(
        cpu=result["hardware"]["cpu"],
        cores=result["hardware"]["usable_cores"],
        torch=result["versions"]["torch"],
        transformers=result["versions"]["transformers"],
    )
    return head + "\n".join(rows) + f"\n\n{where}\n"


def quantisation_table(result: dict[str, Any], page: str) -> str:
    """From the rows of ``benchmarks/quantisation.py``: the original, then one row per case, the smallest first.

    The seeds of a case are averaged; its interval holds the intervals of all of them.
    """
    header, original, per_output, per_layer, caption = QUANTISATION_WORDS[page]
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(row["case"], []).append(row)
    rows = sorted(cases.values(), key=lambda seeds: (mean(seeds, "bytes"), mean_quality(seeds, "kl_mean")))
    first = result["rows"][0]
    lines = header_lines(header)
    lines.append(
        f"| {original} | 16 | | | {first['original_bytes'] / 1e6:.2f} | 0 | | 100 % "
        f"| {first['quality']['reference_perplexity']:.3f} | {result['original']['tokens_per_second']:.0f} | |"
    )
    for seeds in rows:
        low, high = (choose(row["quality"]["kl_interval"][end] for row in seeds) for end, choose in enumerate((min, max)))
        lines.append(
            f"| {' | '.join(scheme_cells(seeds[0]['options'], per_output, per_layer))} | {mean(seeds, 'bytes') / 1e6:.2f} "
            f"| {mean_quality(seeds, 'kl_mean'):.5f} | {low:.5f} to {high:.5f} "
            f"| {100 * mean_quality(seeds, 'top1_agreement'):.1f} % | {mean_quality(seeds, 'candidate_perplexity'):.3f} "
            f"| {mean(seeds, 'tokens_per_second'):.0f} | {mean(seeds, 'seconds'):.0f} |"
        )
    if page.endswith(".zh.md"):
        lines = [line.replace(" to ", " 至 ") for line in lines]
    where = caption.format(tokens=first["quality"]["num_tokens"], **machine(result))
    return "\n".join(lines) + f"\n\n{where}\n"


def result_cache_table(result: dict[str, Any], page: str) -> str:
    """From the result of ``benchmarks/result_cache.py``: the hits of each store, then equal requests and loads with repeats."""
    hits_header, stores, loads_header, equal_load, computed, loads, rate, spread, caption = RESULT_CACHE_WORDS[page]
    lines = header_lines(hits_header)
    for words, hits in zip(stores, result["hits"].values(), strict=True):
        figures = (f"{1e3 * hits[name]:.2f}" for name in ("p50", "p99", "p50_streamed"))
        lines.append(f"| {words} | {' | '.join(figures)} |")
    equal = result["equal_requests"]
    lines += ["", *header_lines(loads_header)]
    lines.append(f"| {equal_load.format(equal=equal['requests'])} | | {computed.format(**equal)} | | |")
    for words, load in zip(loads, result["throughput"].values(), strict=True):
        rates = [rate.format(rate=load["requests_per_second"][name]) for name in ("without", "with")]
        name = words.format(requests=load["requests"], percent=100 * load["repeated"])
        between = spread.format(low=min(load["ratios"]), high=max(load["ratios"]))
        lines.append(f"| {name} | {rates[0]} | {rates[1]} | {load['ratio']:.2f} | {between} |")
    return "\n".join(lines) + f"\n\n{caption.format(**machine(result))}\n"


def kv_files_table(result: dict[str, Any], page: str) -> str:
    """From the result of ``benchmarks/kv_files.py``: a cold start, and one that loads the prefix."""
    header, (cold, loaded), unit, caption = KV_FILES_WORDS[page]
    ttft = result["ttft_seconds"]
    lines = [
        *header_lines(header),
        f"| {cold} | | {ttft['cold']:.2f}{unit} | 1 |",
        f"| {loaded} | {result['load_seconds']:.2f}{unit} | {ttft['loaded']:.3f}{unit} | {result['ratio_with_loading']:.3f} |",
    ]
    model = result["model"].replace("qwen3-0.6b", "Qwen3-0.6B")
    where = caption.format(model=model, tokens=result["prefix"], megabytes=result["file_bytes"] / 1e6, **machine(result))
    return "\n".join(lines) + f"\n\n{where}\n"


def demonstrations_table(result: dict[str, Any], page: str) -> str:
    """From the result of ``benchmarks/demonstrations.py``: each number of shots, beside the same with shuffled outputs."""
    header, share, caption = DEMONSTRATIONS_WORDS[page]
    lines = header_lines(header)
    for row, shuffled in zip(result["rows"]["task"], result["rows"]["shuffled"], strict=True):
        cells = [
            row["shots"],
            f"{row['before']:.2f}",
            f"{row['after']:.2f}",
            share.format(real=num_above_zero(row), runs=row["runs"]),
            f"{shuffled['after']:.2f}",
            share.format(real=num_above_zero(shuffled), runs=shuffled["runs"]),
            f"{row['tokens']:,}",
            f"{row['prompt_tokens'][0]:.0f} → {row['prompt_tokens'][1]:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    where = caption.format(items=result["items"], candidates=result["num_candidates"], **machine(result))
    return "\n".join(lines) + f"\n\n{where}\n"


def num_above_zero(row: dict[str, Any]) -> int:
    return sum(low > 0 for low, _ in row["intervals"])


def header_lines(header: str) -> list[str]:
    return [f"| {header} |", f"|{' --- |' * len(header.split('|'))}"]


def machine(result: dict[str, Any]) -> dict[str, Any]:
    """What a caption says of the machine: ``cpu``, ``cores`` and ``kernels``."""
    hardware = result["hardware"]
    kernels = [name for name in KERNELS if name in hardware["instruction_sets"]][-1]
    return {"cpu": hardware["cpu"], "cores": hardware["usable_cores"], "kernels": kernels}


def scheme_cells(options: dict[str, Any], per_output: str, per_layer: str) -> list[str]:
    """Method with its other options, bits, group and format of a case."""
    others = [f"`--{name.replace('_', '-')} {value}`" for name, value in options.items() if name not in SCHEME]
    method, format = options["method"], options.get("format", "compressed-tensors")
    bits = {"auto": per_layer}.get(method, str(options.get("bits", 8)))
    size = options.get("group_size", -1)
    group = "128 × 128" if format == "fp8" else per_output if size == -1 else str(size)
    return [", ".join([method, *others]), bits, "" if method == "auto" else group, format]


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def mean_quality(rows: list[dict[str, Any]], name: str) -> float:
    return mean([row["quality"] for row in rows], name)


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
