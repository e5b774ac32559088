"""Size, speed and quality of a model quantised by each method, bits, group size and format.

``python benchmarks/quantisation.py demo --out quantisation-demo.json --figure quantisation-demo.svg``

Methods that calibrate run once per seed with 4 bits in groups of 128, each time with other windows of the calibration text. KL,
top-1 and perplexity are on the held-out text that ships with hasten, against the original in float32. Activations are those of
the scheme.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.bench.provenance import provenance
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.run import run_method
from hasten.entrypoints.decode_speed import measure_speed
from hasten.entrypoints.evaluation import evaluate
from quantisation_plot import draw_frontier


@dataclass(frozen=True, slots=True)
class Case:
    options: dict[str, Any]
    set: dict[str, Any] = field(default_factory=dict)  # options of the method
    calibrates: bool = True

    @property
    def has_seeds(self) -> bool:
        """Whether the case runs with several seeds: the common setting shows what the choice of calibration text changes."""
        setting = [self.options.get(name) for name in ("bits", "group_size", "format", "activations")]
        return self.calibrates and setting == [4, 128, "compressed-tensors", None]

    @property
    def name(self) -> str:
        values = {**self.options, **self.set}
        return ", ".join(str(value) if name in ("method", "format") else f"{name} {value}" for name, value in values.items())


def integers(method: str, bits: int, group_size: int, format: str = "compressed-tensors", **others: Any) -> Case:
    options = {"method": method, "bits": bits, "group_size": group_size, "format": format, **others}
    return Case(options, calibrates=method not in ("rtn", "hqq"))


CASES = (
    integers("rtn", 8, -1),
    integers("rtn", 4, -1),
    integers("rtn", 4, 128),
    integers("rtn", 4, 128, clip="mse"),
    integers("rtn", 4, 64),
    integers("rtn", 4, 32),
    integers("hqq", 4, 128),
    integers("awq", 4, 128),
    integers("awq+gptq", 4, 128),
    integers("gptq", 8, -1),
    integers("gptq", 4, -1),
    integers("gptq", 4, 128),
    integers("gptq", 4, 64),
    integers("gptq", 4, 32),
    integers("gptq", 4, 128, "gptq"),
    integers("rtn", 4, 128, "awq"),
    integers("hqq", 4, 128, "awq"),
    integers("awq", 4, 128, "awq"),
    integers("gptq", 4, 128, "awq"),
    integers("rtn", 3, 128, "gptq"),
    integers("rtn", 3, 128, "gptq", clip="mse"),
    integers("gptq", 3, 128, "gptq"),
    integers("rtn", 8, -1, activations="int8"),
    integers("rtn", 8, -1, activations="int8-static"),
    integers("smoothquant", 8, -1, activations="int8"),
    integers("smoothquant+gptq", 8, -1, activations="int8"),
    integers("gptq", 4, 128, activations="int8"),
    Case({"method": "fp8", "format": "compressed-tensors"}, calibrates=False),
    Case({"method": "fp8", "format": "fp8"}, calibrates=False),
    Case({"method": "auto", "max_kl": 0.01}),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--num-tokens", type=int, default=16_384)
    parser.add_argument("--only", help="cases whose name contains this text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", type=Path, help="also write the rows as a Markdown table")
    return parser.parse_args()


def main() -> None:
    options = parse()
    rows = []
    for case in CASES:
        if options.only is None or options.only in case.name:
            for seed in range(options.seeds if case.has_seeds else 1):
                rows.append(measure_case(options.model, case, seed, options.num_tokens))
                print(row_text(rows[-1]), file=sys.stderr)
    original = measure_speed(options.model, {})
    result = {**provenance("quantisation", sys.argv), "model": options.model, "seeds": options.seeds, "rows": rows}
    result["original"] = {"tokens_per_second": original.median, "slowest": min(original.runs)}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.figure is not None:
        options.figure.write_text(draw_frontier(result), encoding="utf-8")
    if options.table is not None:
        options.table.write_text(table(result), encoding="utf-8")


def measure_case(model: str, case: Case, seed: int, num_tokens: int) -> dict[str, Any]:
    parent = Path(tempfile.mkdtemp())
    try:
        folder = parent / "quantised"
        made = run_method(model, folder, QuantizeOptions(**case.options, seed=seed), method_options=case.set)
        assert made is not None
        evaluation = evaluate(str(folder), {}, against=model, num_tokens=num_tokens)
        speed = measure_speed(str(folder), {})
        return {
            "case": case.name,
            "options": {**case.options, **case.set},
            "seed": seed if case.calibrates else None,
            "seconds": made.seconds,
            "bytes": made.nbytes,
            "original_bytes": made.original_nbytes,
            "quality": evaluation.quality.as_dict(),
            "tokens_per_second": speed.median,
            "slowest": min(speed.runs),
            "fastest": max(speed.runs),
        }
    finally:
        shutil.rmtree(parent)


def row_text(row: dict[str, Any]) -> str:
    quality = row["quality"]
    return (
        f"{row['case']}, seed {row['seed']}: {row['bytes'] / 1e6:.2f} MB, KL {quality['kl_mean']:.4f} "
        f"± {1.96 * quality['kl_standard_error']:.4f}, top-1 {quality['top1_agreement']:.1%}, "
        f"perplexity {quality['candidate_perplexity']:.3f}, {row['tokens_per_second']:.0f} tokens/s, {row['seconds']:.0f} s"
    )


def table(result: dict[str, Any]) -> str:
    lines = [
        "| method | bits | group | format | others | MB | KL ± 95 % | top-1 | perplexity | tokens/s | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        options, quality = dict(row["options"]), row["quality"]
        first = [options.pop(name, "") for name in ("method", "bits", "group_size", "format")]
        others = ", ".join(f"{name} {value}" for name, value in options.items())
        lines.append(
            f"| {' | '.join(map(str, first))} | {others} | {row['bytes'] / 1e6:.2f} "
            f"| {quality['kl_mean']:.4f} ± {1.96 * quality['kl_standard_error']:.4f} | {quality['top1_agreement']:.1%} "
            f"| {quality['candidate_perplexity']:.3f} | {row['tokens_per_second']:.0f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
