"""Writes the generated parts of the documentation: the command line reference and the tables of benchmarks.

``python docs/generate.py`` writes them; a test compares them with what stands in the files.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RESULT = RESULTS / "vs_transformers.json"
QUANTISATION_RESULT = RESULTS / "quantisation-demo.json"
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
KERNELS = ("AVX2", "AVX512-VNNI", "AMX-INT8")  # instruction sets that a caption names: the last one of a machine
SCHEME = ("method", "bits", "group_size", "format")  # options with a column of their own


def generated() -> dict[Path, str]:
    """Each file that has a generated part, as it should be."""
    from hasten.cli.reference import cli_reference

    files = {ROOT / "docs" / "reference" / "cli.md": cli_reference()}
    for name in WORDS:
        files[ROOT / name] = with_part(name, "benchmarks", benchmark_table(name))
    result = json.loads(QUANTISATION_RESULT.read_text(encoding="utf-8"))
    for name in QUANTISATION_WORDS:
        files[ROOT / name] = with_part(name, "quantisation", quantisation_table(result, name))
    return files


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
    lines = [f"| {header} |", f"|{' --- |' * len(header.split('|'))}"]
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
    hardware = result["hardware"]
    where = caption.format(
        tokens=first["quality"]["num_tokens"],
        cpu=hardware["cpu"],
        cores=hardware["usable_cores"],
        kernels=[name for name in KERNELS if name in hardware["instruction_sets"]][-1],
    )
    return "\n".join(lines) + f"\n\n{where}\n"


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
