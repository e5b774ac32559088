"""The systemd unit: systemd reads it, and it is confined as docs/how-to/secure-a-server.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.deploy.deployment import UNIT, run_tool, unit_lines

from hasten.serving.server_options import ServerOptions

PROGRAM = "/opt/hasten/bin/hasten"
MAX_EXPOSURE = 2.0  # of 10, as systemd-analyze security counts; below 2 it says "OK"
DIRECTIVES = {name: value for _, name, value in unit_lines(UNIT.read_text(encoding="utf-8"))}


def copy_of(folder: Path, old: str = "", new: str = "") -> Path:
    """Return the unit in a folder, with a program that exists."""
    text = UNIT.read_text(encoding="utf-8")
    assert PROGRAM in text and old in text
    path = folder / "hasten.service"
    path.write_text(text.replace(old, new).replace(PROGRAM, "/bin/true"), encoding="utf-8")
    return path


def faults(path: Path) -> str:
    completed = run_tool("systemd-analyze", "verify", path, package="Debian's systemd")
    return completed.stderr + ("" if completed.returncode == 0 else "failed")


def exposure(path: Path) -> float:
    completed = run_tool("systemd-analyze", "security", "--offline=true", "--no-pager", path, package="Debian's systemd")
    found = re.search(r"exposure level for \S+: ([\d.]+)", completed.stdout)
    assert found, completed.stdout + completed.stderr
    return float(found[1])


def test_systemd_reads_it(tmp_path):
    assert faults(copy_of(tmp_path)) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [("ProtectHome=yes", "ProtectHomes=yes"), ("Type=exec", "Type=execute"), ("ExecStart=", "ExecStart=./")],
)
def test_a_planted_fault_is_seen(tmp_path, old, new):
    assert faults(copy_of(tmp_path, old, new)) != ""


def test_it_is_confined(tmp_path):
    assert exposure(copy_of(tmp_path)) <= MAX_EXPOSURE
    assert DIRECTIVES["DynamicUser"] == "yes" and DIRECTIVES["ProtectSystem"] == "strict" and DIRECTIVES["NoNewPrivileges"] == "yes"
    assert exposure(copy_of(tmp_path, "DynamicUser=yes\n", "")) > exposure(copy_of(tmp_path))


def test_a_directive_stands_once():
    lines = unit_lines(UNIT.read_text(encoding="utf-8"))
    names = [(section, name) for section, name, _ in lines if name != "SystemCallFilter"]  # its lines add up
    assert len(names) == len(set(names))


def test_it_drains_and_is_restarted_within_bounds():
    assert DIRECTIVES["KillSignal"] == "SIGTERM" and DIRECTIVES["KillMode"] == "mixed"
    assert float(DIRECTIVES["TimeoutStopSec"]) > ServerOptions().drain_timeout
    assert DIRECTIVES["Restart"] == "on-failure"
    # The limit ends a loop of failures: so many starts, with the pause between them, fit into its interval.
    starts, interval = int(DIRECTIVES["StartLimitBurst"]), float(DIRECTIVES["StartLimitIntervalSec"])
    assert starts * float(DIRECTIVES["RestartSec"]) < interval


def test_keys_are_credentials_and_not_arguments():
    name, source = DIRECTIVES["LoadCredential"].split(":")
    assert f"--api-key-file %d/{name}" in DIRECTIVES["ExecStart"] and source.startswith("/etc/hasten/")
    assert not re.search(r"--api-key(?!-file)", DIRECTIVES["ExecStart"])
