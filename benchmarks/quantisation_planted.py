"""KL divergence of quantised models with planted channels: what AWQ and SmoothQuant are for.

``PYTHONPATH=. python benchmarks/quantisation_planted.py --out benchmarks/results/quantisation-planted.json``

The planted models compute what the demo model computes, and some inputs of their matrices have large magnitudes
(``tests/compress/quantize/planted_models.py``). Every case runs once per seed, each with other windows of the calibration text.
KL and top-1 are on the held-out text that ships with hasten, against the original in float32. W8A8 runs with int8 activations.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compress.quantize.planted_models import write_outliers, write_salient

from hasten.bench.provenance import provenance
from hasten.checkpoints.hub import resolve
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.quantize import quantize
from hasten.compress.quantize.recipe import build_recipe
from hasten.entrypoints.evaluation import evaluate

WEIGHTS = {"bits": 4, "group_size": 128}
W8A8 = {"bits": 8, "activations": "int8"}


@dataclass(frozen=True, slots=True)
class Case:
    model: str  # of ``MODELS``
    options: dict[str, Any]
    set: dict[str, Any] = field(default_factory=dict)  # options of the method

    @property
    def scheme(self) -> str:
        return "W8A8" if "activations" in self.options else "int4, groups of 128"

    @property
    def name(self) -> str:
        options = {**self.options, **self.set}
        method = options.pop("method")
        others = {name: value for name, value in options.items() if name not in (*WEIGHTS, *W8A8)}
        return ", ".join([method, *(f"{name} {value}" for name, value in others.items())])


def _cases(model: str, scheme: dict[str, Any], *others: dict[str, Any]) -> list[Case]:
    return [Case(model, {**scheme, **options}) for options in others]


MODELS: dict[str, Callable[[Path, Path], Path]] = {
    "demo": lambda folder, source: source,
    "salient": write_salient,
    "outliers": write_outliers,
}
_WEIGHT_METHODS = (
    {"method": "rtn"},
    {"method": "rtn", "clip": "mse"},
    {"method": "awq"},
    {"method": "awq", "clip": "none"},
    {"method": "awq", "clip": "mse"},
    {"method": "awq+gptq"},
    {"method": "gptq"},
)
_W8A8_METHODS = ({"method": "rtn"}, {"method": "gptq"}, {"method": "smoothquant"}, {"method": "smoothquant+gptq"})
CASES = [
    *_cases("demo", WEIGHTS, {"method": "rtn"}, {"method": "awq"}, {"method": "gptq"}),
    *_cases("salient", WEIGHTS, *_WEIGHT_METHODS),
    *_cases("demo", W8A8, *_W8A8_METHODS),
    *_cases("outliers", W8A8, *_W8A8_METHODS),
    Case("outliers", {**W8A8, "method": "smoothquant"}, {"alpha": 0.8}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--num-tokens", type=int, default=8_192)
    parser.add_argument("--only", help="models whose name contains this text")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    header, rows = provenance("quantisation_planted", sys.argv), []
    with tempfile.TemporaryDirectory() as parent:
        for case in CASES:
            if options.only is None or options.only in case.model:
                for seed in _seeds(case, options.seeds):
                    rows.append(_measure(case, seed, options.samples, options.num_tokens, Path(parent)))
                    print(_row_text(rows[-1]), file=sys.stderr)
    result = {**header, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def _seeds(case: Case, number: int) -> Sequence[int | None]:
    """Return the seeds, or None for a method without calibration."""
    return range(number) if build_recipe(QuantizeOptions(**case.options), case.set).needs_calibration else [None]


def _measure(case: Case, seed: int | None, samples: int, num_tokens: int, parent: Path) -> dict[str, Any]:
    source, folder = parent / case.model, parent / "quantised"
    model = resolve("demo") if case.model == "demo" else source
    if not model.exists():
        MODELS[case.model](source, resolve("demo"))
    made = quantize(str(model), folder, QuantizeOptions(**case.options, seed=seed or 0, samples=samples), method_options=case.set)
    assert made is not None
    evaluation, nbytes = evaluate(str(folder), {}, against=str(model), num_tokens=num_tokens), made.nbytes
    shutil.rmtree(folder)
    return {
        "model": case.model,
        "scheme": case.scheme,
        "method": case.name,
        "seed": seed,
        "options": {**case.options, **case.set},
        "activations": evaluation.candidate["activations"],
        "bytes": nbytes,
        "quality": evaluation.quality.as_dict(),
    }


def _row_text(row: dict[str, Any]) -> str:
    low, high = row["quality"]["kl_interval"]
    return f"{row['model']}, {row['scheme']}, {row['method']}, seed {row['seed']}: KL {low:.5f} to {high:.5f}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown; a ratio is that to round to nearest of the same model and scheme."""
    lines = [
        "| model | scheme | method | seed | KL | 95 % interval | KL / rtn's | top-1 | perplexity |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    nearest = {(row["model"], row["scheme"]): row["quality"]["kl_mean"] for row in rows if row["method"] == "rtn"}
    for row in rows:
        quality = row["quality"]
        low, high = quality["kl_interval"]
        ratio = quality["kl_mean"] / nearest[row["model"], row["scheme"]]
        seed = "-" if row["seed"] is None else row["seed"]
        lines.append(
            f"| {row['model']} | {row['scheme']} | {row['method']} | {seed} | {quality['kl_mean']:.5f} | {low:.5f} to {high:.5f} "
            f"| {ratio:.2g} | {quality['top1_agreement']:.1%} | {quality['candidate_perplexity']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
