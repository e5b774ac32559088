"""A virtual environment per peer project, installed from its pinned requirements; a changed file installs anew."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
# What ggml can be told of a processor with AMX. Its own AMX kernels end with an illegal instruction (llama-cpp-python 0.3.36
# with its 8- and 4-bit weights), so there it is compiled for everything but AMX.
GGML = {
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
}


def build_settings() -> dict[str, str]:
    """llama.cpp is compiled for this processor; ggml's OpenMP is its default on Linux."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    flags = ["-DGGML_NATIVE=ON"]
    if "amx_tile" in words:
        flags = ["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}={'ON' if word in words else 'OFF'}" for name, word in GGML.items())]
    # Without the cache: it may hold llama.cpp as it was compiled with other settings.
    return {"CMAKE_ARGS": " ".join(flags), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), "PIP_NO_CACHE_DIR": "1"}


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
            subprocess.run([str(part) for part in command], check=True, stdout=log, stderr=log, env=os.environ | build_settings())
    stamp.write_text(wanted)
    return python
