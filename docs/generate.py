"""Writes the generated parts of the documentation: the command line reference and the READMEs' benchmark tables.

``python docs/generate.py`` writes them; a test compares them with what stands in the files.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "vs_transformers.json"
BEGIN, END = "<!-- benchmarks:begin -->\n", "<!-- benchmarks:end -->"
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


def generated() -> dict[Path, str]:
    """Each file that has a generated part, as it should be."""
    from hasten.cli.reference import cli_reference

    files = {ROOT / "docs" / "reference" / "cli.md": cli_reference()}
    for name in WORDS:
        before, rest = (ROOT / name).read_text(encoding="utf-8").split(BEGIN)
        files[ROOT / name] = before + BEGIN + benchmark_table(name) + END + rest.split(END)[1]
    return files


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


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
