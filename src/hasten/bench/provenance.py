"""The header of every benchmark result: date, command, commit, hardware and software versions."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.bench.machine import this_machine

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")


def provenance(benchmark: str, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the header.

    ``arguments`` is ``sys.argv`` of a script in benchmarks/, or None for any other benchmark.
    """
    command = {}
    if arguments is not None:
        command = {"command": " ".join(["python", f"benchmarks/{Path(arguments[0]).name}", *arguments[1:]])}
    return {
        "benchmark": benchmark,
        **command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": dataclasses.asdict(this_machine()),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of hasten, Python and the packages that do the work."""
    found = {"hasten": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """Return the commit of hasten's repository, with "+" for local changes; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()
