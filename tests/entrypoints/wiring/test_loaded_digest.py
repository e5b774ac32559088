"""``LoadedDigest``: computed once, when it is first needed, and only of the files that were loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.checkpoints.model_digest import model_digest
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.entrypoints.wiring import loaded_digest
from hasten.entrypoints.wiring.loaded_digest import LoadedDigest


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny("llama-sharded"), tmp_path / "model"))


def test_it_is_computed_once_and_not_before_it_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return model_digest(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loaded_digest, "model_digest", counted)
    checkpoint = Checkpoint.open(folder)
    digest = LoadedDigest(checkpoint, "m", visible=False)
    assert not calls
    assert digest.get() == digest.get() == model_digest(checkpoint)
    assert len(calls) == 1


@pytest.mark.parametrize("change", ["time", "size", "file", "gone", "config"])
def test_files_that_changed_since_they_were_loaded_are_refused(change: str, folder: Path) -> None:
    digest = LoadedDigest(Checkpoint.open(folder), "m", visible=False)
    file = sorted(folder.glob("*.safetensors"))[-1]
    if change == "config":  # the loaded model has the older one
        config = folder / "config.json"
        config.write_text(config.read_text() + "\n")
    elif change == "time":
        os.utime(file, (1, 1))
    elif change == "size":
        file.write_bytes(file.read_bytes() + b"x")
    elif change == "file":
        state = file.stat()
        shutil.copyfile(file, folder / "new")
        os.utime(folder / "new", ns=(state.st_atime_ns, state.st_mtime_ns))
        os.replace(folder / "new", file)
    elif change == "gone":
        file.unlink()
    else:
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(CheckpointError, match=r"have changed since it was loaded|cannot be read"):
        digest.get()
