"""The head of every result: what was measured, when, on what, with which software, and the command that does it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hasten.bench.machine import this_machine
from hasten.bench.versions import commit, versions


def provenance(benchmark: str, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """``arguments``: ``sys.argv`` of a script of the folder benchmarks/; None where the benchmark is no script."""
    command = (
        {} if arguments is None else {"command": " ".join(["python", f"benchmarks/{Path(arguments[0]).name}", *arguments[1:]])}
    )
    return {
        "benchmark": benchmark,
        **command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": dataclasses.asdict(this_machine()),
        "versions": versions(),
    }
