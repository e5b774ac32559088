"""A virtual environment per engine, installed from pinned requirements and again after a change."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
# ggml's flags for a processor with AMX -> names in /proc/cpuinfo. Its AMX kernels raise an illegal instruction with 8- and 4-bit
# weights (llama-cpp-python 0.3.36), so it is compiled without AMX.
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
    """Return the environment variables that compile llama.cpp for this processor."""
    features = set(Path("/proc/cpuinfo").read_text().split())
    flags = ["-DGGML_NATIVE=ON"]
    if "amx_tile" in features:
        flags = [
            "-DGGML_NATIVE=OFF",
            *(f"-DGGML_{name}={'ON' if feature in features else 'OFF'}" for name, feature in GGML.items()),
        ]
    # The cache may have llama.cpp compiled with other settings.
    return {"CMAKE_ARGS": " ".join(flags), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), "PIP_NO_CACHE_DIR": "1"}


def python_of(name: str, work_folder: Path) -> Path:
    """Return the environment's Python, installed if necessary.

    Raises ``CalledProcessError``; the log has the reason.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = work_folder / "venvs" / name
    stamp, digest = folder / "installed", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"installing {name} into {folder} (log: {folder}.log)", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", requirements],
            # optimum-intel installs a torchvision built for another torch, which fails to import.
            [python, "-m", "pip", "uninstall", "--yes", "torchvision"],
        ):
            subprocess.run([str(part) for part in command], check=True, stdout=log, stderr=log, env=os.environ | build_settings())
    stamp.write_text(digest)
    return python
