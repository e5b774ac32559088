"""Which software ran: versions of what matters, and the commit where hasten is run from its repository."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hasten import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")


def versions() -> dict[str, str]:
    found = {"hasten": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of hasten's own repository, "+" for local changes; None where hasten is installed without one."""
    home = Path(__file__).parents[3]
    if not (home / ".git").exists():
        return None
    try:
        head = _git(home, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(home, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(home: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(home), *arguments], capture_output=True, text=True, check=True).stdout.strip()
