"""The files of deploy/ as their readers see them, and the programs that check them."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"
UNIT = DEPLOY / "systemd" / "hasten.service"
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
GRAFANA = DEPLOY / "grafana"
DEFAULTED = re.compile(r"\$\{\w+:-([^}]*)\}")  # a variable of compose with its default


def run_tool(name: str, *arguments: str | Path, package: str) -> subprocess.CompletedProcess[str]:
    """Run a program that is installed beside Python or on the PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = shutil.which(name, path=path)
    assert program is not None, f"these tests need {name}, of {package}"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def instructions(dockerfile: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile, each on one line."""
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    return [Instruction(*line.strip().split(maxsplit=1)) for line in lines.replace("\\\n", " ").splitlines() if line.strip()]


def last_stage(parts: Sequence[Instruction]) -> list[Instruction]:
    starts = [index for index, part in enumerate(parts) if part.name == "FROM"]
    return list(parts[starts[-1] :])


@functools.cache
def compose() -> dict[str, Any]:
    """Return the compose file with the defaults of its variables."""
    text = DEFAULTED.sub(r"\1", COMPOSE.read_text(encoding="utf-8"))
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def unit_lines(text: str) -> list[tuple[str, str, str]]:
    """Return the section, name and value of each directive of a systemd unit."""
    section, found = "", []
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.append((section, name, value))
    return found
