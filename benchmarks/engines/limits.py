"""The machine's own limits, measured by a small C++ program compiled for it: streaming and arithmetic rates."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("limits.cpp")


class Limits:
    """Measured several times in a run, each time while no engine runs. Raises ``CalledProcessError`` without a compiler."""

    def __init__(self, work: Path, threads: int) -> None:
        self.threads = threads
        self.program = work / "limits"
        subprocess.run(["g++", "-O3", "-march=native", "-std=c++17", "-pthread", str(SOURCE), "-o", str(self.program)], check=True)
        self.measured: list[dict[str, Any]] = []

    def measure(self) -> None:
        run = subprocess.run([str(self.program), str(self.threads)], capture_output=True, text=True, check=True)
        self.measured.append(json.loads(run.stdout))

    def report(self) -> dict[str, Any]:
        """The best of each: a limit is what was reached once. The medians stand beside them, to show how quiet the machine was."""
        names = ("bytes_per_second", "fp32", "bf16", "int8")
        columns = {name: [float(found[name]) for found in self.measured] for name in names}
        return {
            **{name: max(values) for name, values in columns.items()},
            "units": {"bf16": self.measured[0]["bf16_unit"], "int8": self.measured[0]["int8_unit"], "fp32": "fp32"},
            "medians": {name: statistics.median(values) for name, values in columns.items()},
            "times_measured": len(self.measured),
            "threads": self.threads,
        }


def ops_per_second(limits: dict[str, Any], weights: str) -> float:
    """The fastest arithmetic that the weights allow: int4 is computed in int8, bf16 in bf16 or, where there is none, in fp32."""
    return float(limits["bf16"] if weights == "bf16" else limits["int8"])
