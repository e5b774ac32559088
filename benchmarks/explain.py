"""What ``hasten explain`` predicts for this machine beside what the engine takes, by weight format.

``python benchmarks/explain.py --work-folder /tmp/models --json benchmarks/results/explain.json``

The checkpoint has the published shape and random weights. Run it on a machine that does nothing else.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.shapes import MODELS, checkpoint
from hasten.advise.measured_machine import measured_machine
from hasten.advise.measured_phases import measure_phases
from hasten.advise.model_shape import Precision
from hasten.advise.what_if import Settings, explain_settings
from hasten.advise.work import Lengths
from hasten.bench.provenance import provenance

FORMATS = ("bfloat16", "int8", "int4")
# (batch, prompt, output): decode at three batches; prefill of two lengths, whose decode is not measured.
DECODE = ((1, 128, 64), (8, 128, 64), (32, 128, 64))
PREFILL = ((1, 128, 1), (1, 512, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="qwen3-0.6b")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--work-folder", type=Path, required=True, help="where the checkpoint is made")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the result is written")
    arguments = parser.parse_args()
    folder = checkpoint(arguments.model, arguments.work_folder, seed=0)
    rows = [row for name in arguments.formats for row in _rows(str(folder), name, arguments.threads, arguments.repeats)]
    result = {**provenance("explain", sys.argv), "model": arguments.model, "threads": arguments.threads, "rows": rows}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _rows(folder: str, name: str, threads: int | None, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield predicted and measured seconds in one weight format, and print them."""
    machine = measured_machine([name], threads=threads, fresh=True)
    limits = {
        "bytes_per_second": machine.bandwidth,
        "flops_per_second": machine.rates[name].points,
        "attention": machine.attention,
        "attention_bytes_per_second": machine.attention_bandwidth,
        "layer_overhead": machine.layer_overhead,
        "step_overhead": machine.step_overhead,
    }
    for batch, prompt, output in (*DECODE, *PREFILL):
        quantization = None if name == "bfloat16" else name
        settings = Settings(
            precision=Precision(dtype="bfloat16", quantization=quantization),
            lengths=Lengths(batch=batch, prompt=prompt, output=output),
        )
        explained = explain_settings(folder, settings, lambda shape: machine, is_here=True)
        for phase in measure_phases(folder, settings, explained, threads=threads, repeats=repeats):
            if (phase.name == "prefill") != (output == 1):
                continue
            time = explained.prefill.time if phase.name == "prefill" else explained.decode.time
            assert time is not None
            row = {"format": name, "phase": phase.name, "batch": batch, "prompt": prompt, **phase.as_dict(), "limit": time.limit}
            print(
                f"{name:9} {phase.name:8} batch {batch:2} prompt {prompt:3}: predicted {phase.predicted * 1e3:8.2f} ms, "
                f"measured {phase.measured * 1e3:8.2f} ms, ratio {phase.ratio:.2f}, limit {time.limit}"
            )
            yield {**row, "limits": limits}


if __name__ == "__main__":
    main()
