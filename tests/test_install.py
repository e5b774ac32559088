"""``pip install .`` without a C++ compiler: hasten reports the missing kernels and runs on PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import hasten
llm = hasten.LLM("demo", dtype="float32", max_model_len=64, kv_cache_memory="4MiB")
print(hasten.__file__, llm.describe()["kernels"], sep="\\n")
print(len(llm.generate("def add(a, b):", hasten.SamplingParams(max_tokens=5, ignore_eos=True))[0].outputs[0].token_ids))
"""


def test_an_install_without_a_compiler_runs_on_pytorch(tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(tmp_path / "site"),
    ]
    # The build inherits the environment, and CMake finds no compiler at these paths.
    no_compiler = {**os.environ, "CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}
    settings = [f"--config-settings=build-dir={tmp_path / 'build'}"]
    installed = subprocess.run([*install, *settings, str(ROOT)], env=no_compiler, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    environment = {name: value for name, value in os.environ.items() if name != "HASTEN_CPU_ISA"}
    # -S hides an editable install; PyTorch is found through PYTHONPATH.
    path = os.pathsep.join((str(tmp_path / "site"), sysconfig.get_path("purelib")))
    completed = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        env={**environment, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    file, kernels, num_tokens = completed.stdout.splitlines()
    assert file.startswith(str(tmp_path)) and "installed without native kernels" in kernels and num_tokens == "5"
