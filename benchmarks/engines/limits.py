"""The machine's memory bandwidth and arithmetic throughput, measured by a small C++ program."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("limits.cpp")


class Limits:
    """Repeated measurements while no engine runs. Raises ``CalledProcessError`` without a compiler."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.threads = threads
        self.program = folder / "limits"
        subprocess.run(["g++", "-O3", "-march=native", "-std=c++17", "-pthread", str(SOURCE), "-o", str(self.program)], check=True)
        self.measured: list[dict[str, Any]] = []

    def measure(self) -> None:
        run = subprocess.run([str(self.program), str(self.threads)], capture_output=True, text=True, check=True)
        self.measured.append(json.loads(run.stdout))

    def report(self) -> dict[str, Any]:
        """Return the maximum of each figure as its limit, and the median to show how idle the machine was."""
        names = ("bytes_per_second", "fp32", "bf16", "int8")
        columns = {name: [float(measurement[name]) for measurement in self.measured] for name in names}
        return {
            **{name: max(values) for name, values in columns.items()},
            "units": {"bf16": self.measured[0]["bf16_unit"], "int8": self.measured[0]["int8_unit"], "fp32": "fp32"},
            "medians": {name: statistics.median(values) for name, values in columns.items()},
            "times_measured": len(self.measured),
            "threads": self.threads,
        }


def ops_per_second(limits: dict[str, Any], activations: str) -> float:
    """Return the limit of products with these activations.

    A product of 16-bit integers takes two of 8 bits. Floats are computed in bf16 or, without such instructions, in fp32.
    """
    if activations.startswith("int16"):
        return float(limits["int8"]) / 2
    return float(limits["int8"] if activations.startswith("int8") else limits["bf16"])
