"""A virtual environment per peer project, installed from its pinned requirements; a changed file installs anew."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
# llama.cpp is compiled for this processor; ggml's OpenMP is its default on Linux.
BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}


def python_of(name: str, work: Path) -> Path:
    """The environment's Python, installed if need be. Raises ``CalledProcessError`` if that fails; the log says why."""
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = work / "venvs" / name
    stamp, wanted = folder / "installed", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} into {folder} (log: {folder}.log)", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", requirements],
            # optimum-intel brings a torchvision that is built for another torch and cannot be imported beside this one.
            [python, "-m", "pip", "uninstall", "--yes", "torchvision"],
        ):
            subprocess.run([str(part) for part in command], check=True, stdout=log, stderr=log, env=os.environ | BUILD)
    stamp.write_text(wanted)
    return python
