"""``hand_over`` replaces the process by vLLM, or says how to run it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.cli.hand_over import NOT_INSTALLED, hand_over
from hasten.cli.main import run
from hasten.core.engine_options import EngineOptions
from hasten.serving.server_options import ServerOptions

FAKE = """#!{python}
import json, os, sys
print(json.dumps([sys.argv[1:], {{name: os.environ.get(name) for name in ("VLLM_API_KEY", "VLLM_MAX_N_SEQUENCES")}}, os.getpid()]))
"""
PROGRAM = """
from hasten.cli.hand_over import hand_over
from hasten.core.engine_options import EngineOptions
from hasten.serving.server_options import ServerOptions
raise SystemExit(hand_over(EngineOptions(seed=3), ServerOptions(api_keys=("key",)), {"m": "demo"}))
"""


@pytest.fixture
def no_vllm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def test_the_command_is_printed_where_vllm_is_missing(no_vllm, capsys):
    assert hand_over(EngineOptions(), ServerOptions(api_keys=("top-secret",), max_n=3), {"m": "demo"}) == NOT_INSTALLED
    out, err = capsys.readouterr()
    words = shlex.split(out)
    program = words.index("vllm")
    assert words[program + 1] == "serve" and words[words.index("--served-model-name") + 1] == "m"
    assert "VLLM_MAX_N_SEQUENCES=3" in words[:program] and out.count("\n") == 1
    assert "top-secret" not in out + err and "VLLM_API_KEY" in err and "not installed" in err


def test_vllm_takes_the_process_over(tmp_path):
    vllm = tmp_path / "vllm"
    vllm.write_text(FAKE.format(python=sys.executable))
    vllm.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2]
    ) as run:
        out, _ = run.communicate()
        arguments, variables, pid = json.loads(out)
    assert run.returncode == 0 and pid == run.pid
    assert arguments[0] == "serve" and arguments[arguments.index("--seed") + 1] == "3"
    assert variables == {"VLLM_API_KEY": "key", "VLLM_MAX_N_SEQUENCES": "8"}


def test_serve_hands_over_with_the_options_of_every_source(no_vllm, tmp_path, monkeypatch, capsys):
    (tmp_path / "serve.yaml").write_text("max_num_seqs: 5\nport: 9000\nmodels: {m: demo}\n")
    monkeypatch.setenv("HASTEN_MAX_MODEL_LEN", "300")
    assert run(["serve", "--engine", "vllm", "--config", str(tmp_path / "serve.yaml"), "--port", "9001"]) == NOT_INSTALLED
    words = shlex.split(capsys.readouterr().out)
    values = {name: words[words.index(f"--{name}") + 1] for name in ("max-num-seqs", "max-model-len", "port", "served-model-name")}
    assert values == {"max-num-seqs": "5", "max-model-len": "300", "port": "9001", "served-model-name": "m"}


def test_serve_refuses_what_vllm_would_compute_otherwise(no_vllm, capsys):
    assert run(["serve", "demo", "--engine", "vllm", "--quantization", "int8"]) == 2
    assert "hasten quantize" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "code"), [([], 2), (["--insecure"], NOT_INSTALLED), (["--api-key", "key"], NOT_INSTALLED)])
def test_other_machines_need_a_key_here_too(no_vllm, capsys, options, code):
    assert run(["serve", "demo", "--engine", "vllm", "--host", "0.0.0.0", *options]) == code
    assert ("no API key protects it" in capsys.readouterr().err) == (code == 2)
